"""Muon: momentum whose matrices are made orthogonal before each update."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tinydiffusion.layers.precision import uses_bfloat16
from tinydiffusion.training.parallel.contract import Parallel

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
        kept = torch.where(off, 1.0, self.momentum)
        rate = torch.where(off, 0.0, learning_rate)
        for names in self._names_by_shape().values():
            weights: list[Tensor] = [self.matrices[name] for name in names]
            buffers = [self.buffers[name] for name in names]
            # zeros where it is called off, since NaN times 0 is NaN
            gradients = [gradient_of(self.matrices[n]).masked_fill_(off, 0.0) for n in names]
            torch._foreach_mul_(buffers, kept)  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_add_(buffers, gradients, alpha=1 - self.momentum)  # pyright: ignore[reportPrivateImportUsage]
            # the look ahead of Nesterov
            ahead = torch._foreach_lerp(gradients, buffers, self.momentum)  # pyright: ignore[reportPrivateImportUsage]
            directions = self._directions(names, ahead)
            torch._foreach_mul_(directions, rate)  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_mul_(weights, 1 - rate * self.weight_decay)  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_sub_(weights, directions)  # pyright: ignore[reportPrivateImportUsage]

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

    def _directions(self, names: list[str], momentum: Sequence[Tensor]) -> list[Tensor]:
        """Where each matrix goes, as far as this process holds it."""
        wholes = [self.parallel.whole(n, m) for n, m in zip(names, momentum, strict=True)]
        # in that number format before they are put together: half as much to copy in bfloat16
        dtype = _fastest_dtype(wholes[0].device)
        matrices = orthogonalised(torch.stack([_matrix(whole.to(dtype)) for whole in wholes]))
        rows, columns = matrices.shape[1:]
        scale = max(1, rows / columns) ** 0.5
        return [
            self.parallel.part(name, scale * _like(matrix, whole).to(whole.dtype))
            for name, matrix, whole in zip(names, matrices, wholes, strict=True)
        ]

    def _names_by_shape(self) -> dict[tuple[int, ...], list[str]]:
        """Names of the matrices with a gradient; one shape is updated in one call."""
        shapes: dict[tuple[int, ...], list[str]] = {}
        for name, matrix in self.matrices.items():
            if matrix.grad is not None:
                shapes.setdefault(tuple(self.parallel.shapes[name]), []).append(name)
        return shapes


def orthogonalised(matrices: Float[Tensor, "N R C"]) -> Float[Tensor, "N R C"]:
    """Replace the singular values of each matrix by numbers near 1, in its own number format.

    X <- a X + (b A + c A^2) X with A = X X^T: the Newton-Schulz iteration of Jordan et al. (2024).
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # now no singular value is above 1
    for _ in range(NUM_ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _fastest_dtype(device: torch.device) -> torch.dtype:
    """Choose bfloat16, which is exact enough, unless the device would emulate it number by number.

    A CPU without AVX512-BF16 or AMX does, at a tenth of the speed of float32.
    """
    return torch.bfloat16 if uses_bfloat16("auto", device) else torch.float32


def gradient_of(parameter: nn.Parameter) -> Tensor:
    """The parameter's gradient, which it has."""
    assert parameter.grad is not None
    return parameter.grad


def _matrix(weight: Float[Tensor, "R *shape"]) -> Float[Tensor, "R C"]:
    """The weight as a matrix; a kernel's columns in the order of channels_last memory.

    Orthogonal is orthogonal in any order of the columns, and this one takes no copy.
    """
    return weight.movedim(1, -1).flatten(1)


def _like(matrix: Float[Tensor, "R C"], weight: Float[Tensor, "R *shape"]) -> Tensor:
    """The matrix in the shape of the weight that it was made of."""
    return matrix.view(weight.movedim(1, -1).shape).movedim(-1, 1)
