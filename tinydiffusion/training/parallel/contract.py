"""The contract of processes that share an objective.

`parameters` are the plain tensors that a process updates, so that optimizer and average know
nothing of processes; what is elementwise needs no more. `whole` and `part` lead from a part to its
whole tensor and back.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tinydiffusion.protocols import Batch, Generators

Strategy = Literal["ddp", "fsdp"]
Loss = tuple[Float[Tensor, ""], Mapping[str, float | Tensor]]


@runtime_checkable
class Parallel(Protocol):
    """An objective as the processes of a run hold it, with its gradients summed over them."""

    objective: nn.Module
    """What is trained here, whose buffers change; not always the one that was given."""
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
        """Return this process's part of a whole tensor of the parameter's shape."""
        ...

    def showing(self, weights: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Inside the `with`, the objective that was given holds these weights. Collective.

        In the main process, that is; what the others hold then is of no use.
        """
        ...


class Forward(nn.Module):
    """The loss as a forward pass, to which DDP and FSDP2 attach themselves."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective: Any = objective

    def forward(self, batch: Batch, generators: Generators) -> Loss:
        """The objective's loss."""
        return self.objective.loss(batch, generators)
