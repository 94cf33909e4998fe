"""3x3 convolutions with a quarter of the multiplications, for wide networks on CPUs."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from tinydiffusion.runtime.cpu import has_amx

LEAST_CHANNELS, LEAST_TILES = 192, 256
"""Below these the transforms take what the products save: benchmarks/winograd.py."""
HAS_AMX = has_amx()  # not a call where torch's compiler looks on


def conv2d(
    x: Float[Tensor, "B C H W"], weight: Float[Tensor, "K C 3 3"], bias: Float[Tensor, "K"]
) -> Float[Tensor, "B K H W"]:
    """Compute `winograd_conv2d` in the number format that autocast asks for."""
    x = x.to(dtype_of(x))
    with torch.autocast("cpu", enabled=False):
        return winograd_conv2d(x, weight, bias)


def pays(shape: Sequence[int], out_channels: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Tell whether `conv2d` is the faster way for an input of this shape (B, C, H, W).

    It is in wide layers on a CPU; but not in bfloat16 where there is AMX, whose convolutions are
    so fast that the transforms take longer.
    """
    batch, channels, height, width = shape
    return (
        device.type == "cpu"
        and dtype in (torch.float32, torch.bfloat16)
        and min(channels, out_channels) >= LEAST_CHANNELS
        and height % 4 == width % 4 == 0
        and batch * height * width >= 16 * LEAST_TILES
        and not (dtype == torch.bfloat16 and HAS_AMX)
    )


def dtype_of(x: Tensor) -> torch.dtype:
    """Find out in which number format a convolution of x is computed, autocast included."""
    # Asked of the CPU only: torch refuses the question for the meta device.
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def winograd_conv2d(
    x: Float[Tensor, "B C H W"], weight: Float[Tensor, "K C 3 3"], bias: Float[Tensor, "K"]
) -> Float[Tensor, "B K H W"]:
    """The convolution of x, with a border of zeros, by minimal filtering F(4x4, 3x3).

    Lavin & Gray (2016), section 4.3, https://arxiv.org/abs/1509.09308: a tile of 4x4 outputs comes
    from 6x6 inputs as polynomials do from their values at 6x6 points, where 36 products a channel
    do the work of 144. They make up products of matrices, and so do the transforms.

    What is rounded at the points counts several times in the tile: in bfloat16 the error is 1.6 %
    of the output's norm, that of a direct convolution 0.23 %; in float32 0.0001 %.

    Args:
        x: In any floating format; height and width multiples of 4.
        weight: In the format of x or a finer one, as is the bias.
        bias: One number for each map of the output.

    Raises:
        ValueError: a height or width that is no multiple of 4.
    """
    if x.shape[2] % 4 or x.shape[3] % 4:
        raise ValueError(f"height and width must be multiples of 4, got {tuple(x.shape[2:])}")
    return torch.ops.tinydiffusion.winograd_conv2d(x, weight, bias)[0]


# ---- the operator ----------------------------------------------------------------------------
#
# One to torch's compiler, which would write the small products out term by term for minutes; and
# to its counter of FLOPs, for which it is the convolution that it stands for. Defined piece by
# piece, since torch.library.custom_op imports the compiler for two seconds.

torch.library.define(
    "tinydiffusion::winograd_conv2d",
    "(Tensor x, Tensor weight, Tensor bias) -> (Tensor y, Tensor v, Tensor u)",
)
torch.library.define(
    "tinydiffusion::winograd_conv2d_backward",
    "(Tensor grad, Tensor v, Tensor u, ScalarType of_weights)"
    " -> (Tensor x, Tensor weight, Tensor bias)",
)


@torch.library.impl("tinydiffusion::winograd_conv2d", "CPU")
def _forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Y = A' [(G g G') * (B' d B)] A, Lavin & Gray's equation 8, and both of its factors.

    Each transform is one product: B' d B is (B' x B') d with a Kronecker product, and so on.
    """
    with torch.autocast("cpu", enabled=False):
        v = _by_channel(INPUTS.to(x.dtype) @ _tiles(x), x.shape[1])
        u = WEIGHTS.to(weight.dtype) @ rearrange(weight, "k c y x -> (y x) (k c)")
        u = _by_channel(u.to(x.dtype), x.shape[1])
        y = OUTPUTS.to(x.dtype) @ (v @ u.mT).flatten(1)
    batch, _, height, width = x.shape
    y = rearrange(
        y, "(p q) (b h w k) -> b (h p) (w q) k", p=4, q=4, b=batch, h=height // 4, w=width // 4
    )
    return y.add_(bias.to(x.dtype)).permute(0, 3, 1, 2), v, u


@torch.library.impl("tinydiffusion::winograd_conv2d_backward", "CPU")
def _backward(
    grad: Tensor, v: Tensor, u: Tensor, of_weights: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The adjoints of `_forward`, for x, the weight and the bias."""
    with torch.autocast("cpu", enabled=False):
        tiles = rearrange(grad, "b k (h p) (w q) -> (p q) (b h w k)", p=4, q=4)
        grad_m = _by_channel(OUTPUTS.to(grad.dtype).mT @ tiles, grad.shape[1])
        grad_u = (grad_m.mT @ v).flatten(1).to(of_weights)
        grad_weight = WEIGHTS.to(of_weights).mT @ grad_u
        grad_x = INPUTS.to(grad.dtype).mT @ (grad_m @ u).flatten(1)
    return (
        _untiled(grad_x, grad.shape, v.shape[2]),
        rearrange(grad_weight, "(y x) (k c) -> k c y x", y=3, c=v.shape[2]),
        grad.sum((0, 2, 3), dtype=of_weights),
    )


@torch.library.register_fake("tinydiffusion::winograd_conv2d")
def _forward_shapes(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    del bias
    batch, channels, height, width = x.shape
    y = x.new_empty(batch, height, width, len(weight)).permute(0, 3, 1, 2)
    v = x.new_empty(36, batch * height * width // 16, channels)
    return y, v, x.new_empty(36, len(weight), channels)


@torch.library.register_fake("tinydiffusion::winograd_conv2d_backward")
def _backward_shapes(
    grad: Tensor, v: Tensor, u: Tensor, of_weights: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    del u
    batch, maps, height, width = grad.shape
    padded = grad.new_empty(batch, height + 4, width + 4, v.shape[2])
    weight = grad.new_empty(3, 3, maps, v.shape[2], dtype=of_weights)
    return (
        padded[:, 1 : height + 1, 1 : width + 1].permute(0, 3, 1, 2),
        weight.permute(2, 3, 0, 1),
        grad.new_empty(maps, dtype=of_weights),
    )


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    _, v, u = output
    ctx.mark_non_differentiable(v, u)
    ctx.set_materialize_grads(False)  # zeros as large as v and u
    ctx.save_for_backward(v, u)
    ctx.of_weights = inputs[1].dtype


def _gradients(
    ctx: Any, grad: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor] | tuple[None, None, None]:
    if grad is None:
        return None, None, None
    return torch.ops.tinydiffusion.winograd_conv2d_backward(
        grad, *ctx.saved_tensors, ctx.of_weights
    )


torch.library.register_autograd("tinydiffusion::winograd_conv2d", _gradients, setup_context=_keep)


def _forward_flops(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * x[0] * prod(x[2:]) * prod(weight)


def _backward_flops(grad: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * 2 * prod(grad) * 9 * v[2]


FLOPS = {
    torch.ops.tinydiffusion.winograd_conv2d: _forward_flops,
    torch.ops.tinydiffusion.winograd_conv2d_backward: _backward_flops,
}
"""For torch.utils.flop_counter: from shapes, those of the direct convolution, by which networks are
compared."""


def _by_channel(rows: Float[Tensor, "36 NC"], channels: int) -> Float[Tensor, "36 N C"]:
    return rows.view(36, -1, channels)


def _tiles(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "36 BhwC"]:
    """Pixels of 6x6, in steps of 4, of the picture with a border of zeros."""
    batch, channels, height, width = x.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()
    picture, row, pixel, _ = padded.stride()
    tiles = padded.as_strided(
        (6, 6, batch, height // 4, width // 4, channels),
        (row, pixel, picture, 4 * row, 4 * pixel, 1),
    )
    return tiles.reshape(36, -1)


def _untiled(
    tiles: Float[Tensor, "36 BhwC"], size: Sequence[int], channels: int
) -> Float[Tensor, "B C H W"]:
    """The adjoint of `_tiles`: pictures in which tiles that overlap are added up."""
    batch, _, height, width = size
    h, w = height // 4, width // 4
    tiles = tiles.view(6, 6, batch, h, w, channels).permute(2, 3, 0, 4, 1, 5)
    # Of a tile's 6 rows 4 lie in its own place and 2 in the next one's.
    out = tiles.new_zeros(batch, h + 1, 4, w + 1, 4, channels)
    out[:, :h, :, :w] = tiles[:, :, :4, :, :4]
    out[:, 1:, :2, :w] += tiles[:, :, 4:, :, :4]
    out[:, :h, :, 1:, :2] += tiles[:, :, :4, :, 4:]
    out[:, 1:, :2, 1:, :2] += tiles[:, :, 4:, :, 4:]
    padded = out.view(batch, height + 4, width + 4, channels)
    return padded[:, 1 : height + 1, 1 : width + 1].permute(0, 3, 1, 2)


# ---- the transforms --------------------------------------------------------------------------

POINTS = (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)
"""Where polynomials are evaluated, beside infinity. Barabasz et al. (2019) show how much hangs on
it (https://arxiv.org/abs/1803.10986): with +-1 and +-2 the error would be twice as large."""


def _powers(count: int) -> Float[Tensor, "6 count"]:
    """Each point's powers from 0; at infinity only the highest counts."""
    powers = [[point**k for k in range(count)] for point in POINTS]
    return _matrix([*powers, [0.0] * (count - 1) + [1.0]])


def _inputs() -> Float[Tensor, "6 6"]:
    """B': the coefficients of the product of (z - q) over all points q but the row's."""
    rows = []
    for point in (*POINTS, None):
        coefficients = _matrix([1.0])
        for other in POINTS:
            if other != point:
                times_z = F.pad(coefficients, (1, 0))
                coefficients = times_z - other * F.pad(coefficients, (0, 1))
        rows.append(F.pad(coefficients, (0, 6 - len(coefficients))))
    return torch.stack(rows)


def _weights() -> Float[Tensor, "6 3"]:
    """G: the powers, over the product of the point's distances from the others."""
    points = _matrix(POINTS)
    distances = points[:, None] - points + torch.eye(5, dtype=torch.float64, device="cpu")
    return _powers(3) / F.pad(distances.prod(dim=1), (0, 1), value=1.0)[:, None]


def _matrix(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu")


INPUTS: Float[Tensor, "36 36"] = torch.kron(_inputs(), _inputs())
WEIGHTS: Float[Tensor, "36 9"] = torch.kron(_weights(), _weights())
OUTPUTS: Float[Tensor, "16 36"] = torch.kron(_powers(4).mT, _powers(4).mT)
