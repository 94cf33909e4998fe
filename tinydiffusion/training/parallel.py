"""One objective in several processes: whole in each (DDP), or a part of every tensor (FSDP2).

Either way `parameters` are the plain tensors that this process updates, so that optimizer and
average know nothing of processes; what is elementwise needs no more. `whole` and `part` lead from
a part to its whole tensor and back.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tinydiffusion.processes import Processes
from tinydiffusion.protocols import Batch, Generators
from tinydiffusion.training.ema import trained_parameters

Strategy = Literal["ddp", "fsdp"]
Loss = tuple[Float[Tensor, ""], Mapping[str, float | Tensor]]


@runtime_checkable
class Parallel(Protocol):
    """How the processes of a run hold an objective and add up its gradients."""

    parameters: dict[str, nn.Parameter]
    """What this process updates, by the objective's names."""
    shapes: dict[str, torch.Size]
    """Of the whole parameters."""

    def loss(self, batch: Batch, generators: Generators) -> Loss:
        """The objective's loss of this process's pictures. Collective."""
        ...

    def adding_up(self, last: bool) -> AbstractContextManager[Any]:
        """Inside the `with`, a backward pass averages gradients over the processes if `last`."""
        ...

    def clip(self, most: float) -> Float[Tensor, ""]:
        """The norm of the whole gradient, which is then at most `most`. Collective."""
        ...

    def whole(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor that these are the parts of; of the parameter's shape or none. Collective."""
        ...

    def part(self, name: str, tensor: Tensor) -> Tensor:
        """What of a whole tensor of the parameter's shape this process holds."""
        ...

    def showing(self, weights: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Inside the `with`, the objective that was given holds these weights. Collective.

        In the main process, that is; what the others hold then is of no use.
        """
        ...


def parallel(objective: nn.Module, processes: Processes, strategy: Strategy) -> Parallel:
    """The objective as the processes of a run hold it; of one process, as it is."""
    if processes.count > 1 and strategy == "fsdp":
        # of all who build an objective few need it, and it takes most of a second to import
        from tinydiffusion.training.sharded import Sharded

        return Sharded(objective, processes)
    return Replicated(objective, processes)


class Replicated:
    """The whole objective in every process."""

    def __init__(self, objective: nn.Module, processes: Processes) -> None:
        self._module = Forward(objective)
        self._processes = processes
        self._ddp: DistributedDataParallel | None = None
        self.parameters = trained_parameters(objective)
        self.shapes = {name: p.shape for name, p in self.parameters.items()}

    def loss(self, batch: Batch, generators: Generators) -> Loss:
        """The objective's loss of this process's pictures. Collective."""
        if self._processes.count > 1 and self._ddp is None:
            self._ddp = self._wrapped(batch, generators)
        module = self._ddp or self._module
        return module(batch, generators)

    def adding_up(self, last: bool) -> AbstractContextManager[Any]:
        """Inside the `with`, a backward pass averages gradients over the processes if `last`."""
        return nullcontext() if last or self._ddp is None else self._ddp.no_sync()

    def clip(self, most: float) -> Float[Tensor, ""]:
        """The norm of the whole gradient, which is then at most `most`."""
        return nn.utils.clip_grad_norm_(self.parameters.values(), most, foreach=True)

    def whole(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        del name
        return tensor

    def part(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        del name
        return tensor

    @contextmanager
    def showing(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside the `with`, the objective holds these weights, its own bits again after it."""
        own = [p.detach().clone() for p in self.parameters.values()]
        self._overwrite(list(weights.values()))
        try:
            yield
        finally:
            self._overwrite(own)

    @torch.no_grad()
    def _overwrite(self, weights: list[Tensor]) -> None:
        torch._foreach_copy_(list(self.parameters.values()), weights)  # pyright: ignore[reportPrivateImportUsage]

    def _wrapped(self, batch: Batch, generators: Generators) -> DistributedDataParallel:
        """DDP, told of parameters that get no gradient: it would wait for them for ever."""
        states = [generator.get_state() for generator in generators]
        parameters = list(self.parameters.values())
        cuda = [p.device for p in parameters[:1] if p.device.type == "cuda"]
        with torch.random.fork_rng(devices=cuda):  # of dropout
            loss, _ = self._module(batch, generators)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        unused = any(self._processes.gather(any(g is None for g in gradients)))
        return DistributedDataParallel(
            self._module, find_unused_parameters=unused, gradient_as_bucket_view=True
        )


class Forward(nn.Module):
    """The loss as a forward pass, to which DDP and FSDP2 attach themselves."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective: Any = objective

    def forward(self, batch: Batch, generators: Generators) -> Loss:
        """The objective's loss."""
        return self.objective.loss(batch, generators)
