"""The whole objective in every process (DDP)."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tinydiffusion.protocols import Batch, Generators
from tinydiffusion.runtime.processes import Processes
from tinydiffusion.training.ema import trained_parameters
from tinydiffusion.training.parallel.contract import Forward, Loss


class Replicated:
    """The whole objective in every process."""

    def __init__(self, objective: nn.Module, processes: Processes) -> None:
        self.objective = objective
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
