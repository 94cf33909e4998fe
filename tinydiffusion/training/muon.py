"""Muon: momentum whose matrices are made orthogonal before each update."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tinydiffusion.training.parallel import Parallel

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # steep at 0: all singular values near 1 in five rounds
NUM_ROUNDS = 5


class GuardedMuon:
    """Muon with a step that can be called off on the device, without waiting for it.

    Jordan et al. (2024), https://kellerjordan.github.io/posts/muon/. Every direction of a matrix
    moves at nearly the same speed, the rare ones too. Equal to `torch.optim.Muon`, which has no
    way to call a step off.

    Args:
        matrices: What is trained, by name: matrices, and kernels, each a matrix of as many rows
            as it has output channels.
        parallel: How the processes of the run hold them; singular values are those of the whole.
        momentum: Share of the old momentum that a step keeps, in [0, 1).
        weight_decay: Share of the weights, times the learning rate, taken off at every step.
    """

    def __init__(
        self,
        matrices: Mapping[str, nn.Parameter],
        parallel: Parallel,
        *,
        momentum: float = 0.95,
        weight_decay: float,
    ) -> None:
        self.matrices = dict(matrices)
        self.parallel = parallel
        self.momentum, self.weight_decay = momentum, weight_decay
        self.buffers = {name: torch.zeros_like(p) for name, p in matrices.items()}

    @torch.no_grad()
    def guarded_step(self, learning_rate: float, call_off: Float[Tensor, ""]) -> None:
        """One update at this learning rate, or none where `call_off` is 1."""
        off = call_off > 0
        for names in self._names_by_shape().values():
            weights = torch.stack([self.matrices[name] for name in names])
            gradients = torch.stack([_gradient(self.matrices[name]) for name in names])
            buffers = torch.stack([self.buffers[name] for name in names])
            moved = buffers.lerp(gradients, 1 - self.momentum)
            ahead = gradients.lerp(moved, self.momentum)  # Nesterov
            directions = self._directions(names, ahead)
            decayed = weights * (1 - learning_rate * self.weight_decay)
            stepped = decayed - learning_rate * directions
            _write(self.buffers, names, torch.where(off, buffers, moved))
            _write(self.matrices, names, torch.where(off, weights, stepped))

    def named_state(self) -> dict[str, Tensor]:
        """Every tensor of the state as `<parameter name>/momentum`."""
        return {f"{name}/momentum": buffer for name, buffer in self.buffers.items()}

    def expected_state(self, names: AbstractSet[str]) -> dict[str, Tensor]:  # noqa: ARG002
        """Tensors like those of the state: all of them, whatever the names."""
        return self.named_state()

    def load_named_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `named_state` returned."""
        for name, buffer in self.buffers.items():
            buffer.copy_(tensors[f"{name}/momentum"])

    def _directions(
        self, names: list[str], momentum: Float[Tensor, "N *shape"]
    ) -> Float[Tensor, "N *shape"]:
        """Where each matrix goes, as far as this process holds it."""
        wholes = [self.parallel.whole(n, m) for n, m in zip(names, momentum, strict=True)]
        matrices = torch.stack([whole.flatten(1) for whole in wholes])
        rows, columns = matrices.shape[1:]
        matrices = max(1, rows / columns) ** 0.5 * orthogonalised(matrices)
        parts = [
            self.parallel.part(name, matrix.view_as(whole))
            for name, matrix, whole in zip(names, matrices, wholes, strict=True)
        ]
        return torch.stack(parts)

    def _names_by_shape(self) -> dict[tuple[int, ...], list[str]]:
        """Names of the matrices with a gradient; one shape is updated in one call."""
        shapes: dict[tuple[int, ...], list[str]] = {}
        for name, matrix in self.matrices.items():
            if matrix.grad is not None:
                shapes.setdefault(tuple(self.parallel.shapes[name]), []).append(name)
        return shapes


def orthogonalised(matrices: Float[Tensor, "N R C"]) -> Float[Tensor, "N R C"]:
    """Each matrix with its singular values replaced by numbers near 1, computed in bfloat16.

    X <- a X + (b A + c A^2) X with A = X X^T: the Newton-Schulz iteration of Jordan et al. (2024).
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # now no singular value is above 1
    for _ in range(NUM_ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def _gradient(matrix: nn.Parameter) -> Tensor:
    assert matrix.grad is not None
    return matrix.grad


def _write(tensors: Mapping[str, Tensor], names: list[str], values: Tensor) -> None:
    for name, value in zip(names, values, strict=True):
        tensors[name].copy_(value)
