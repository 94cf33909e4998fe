"""3x3 convolutions in 8-bit integers: sampling on CPUs that multiply those fastest."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tinydiffusion.runtime.cpu import has_vnni

LEAST_CHANNELS, LEAST_PIXELS = 96, 128
"""Below these rounding to integers takes what their products save: benchmarks/int8.py. Pixels are
those of one picture: how many share a call must not change what is computed."""
MOST_CHANNELS = 320
"""Beyond, Winograd's way (`layers/kernels/winograd.py`) is as fast in bfloat16."""
ROWS = 16
"""Pictures rounded at a time: what is read again soon is then still in the cache."""

ZERO = 28
"""The integer that stands for 0, which the border is made of."""
LARGEST = 255 - ZERO - 1  # one to spare for a scale that was rounded down
"""Levels above 0, for what comes out of SiLU: much more of it is positive."""
LEAST_PEAK = 1e-30  # of a picture of zeros
MANTISSA = 1.5 * 2**23
"""Added to a small float32, it leaves the nearest integer in the last bits."""

OPERATOR = "qconv2d_pointwise"
"""Of `torch.ops.onednn`: not promised to stay, but the same since torch 2.8 at least."""


class Packed(NamedTuple):
    """Weights as oneDNN wants them."""

    weight: Tensor  # what they come from: as long as it is held, no other has its id
    version: int  # of its content, which torch counts
    levels: Tensor  # int8, in an order of its own
    scales: Float[Tensor, "K"]
    zeros: Tensor


_packed: ContextVar[dict[tuple[int, torch.Size], Packed] | None] = ContextVar(
    "packed", default=None
)
"""What is packed already; None outside of `int8_convolutions`."""


def int8_obstacle(device: torch.device) -> str | None:
    """Why there are no int8 convolutions on this device; None where there are."""
    if device.type != "cpu":
        return f"it is for CPUs, not for {device.type}"
    if not has_vnni():
        return "this CPU has no AVX512-VNNI"
    if not hasattr(torch.ops.onednn, OPERATOR):
        return "this build of torch has no oneDNN"
    return None


@contextmanager
def int8_convolutions(enabled: bool) -> Iterator[None]:
    """Within it, layers call `conv2d` where `pays` says so.

    Weights are rounded and packed at their first use within it, and again after a change.
    """
    token = _packed.set({} if enabled else None)
    try:
        yield
    finally:
        _packed.reset(token)


def pays(x: Float[Tensor, "B C H W"], out_channels: int) -> bool:
    """Return whether `conv2d` may be used now and is faster for an input of this shape."""
    _, channels, height, width = x.shape
    return (
        not torch.is_grad_enabled()  # first: torch's compiler, which is for training, stops there
        and _packed.get() is not None
        and min(channels, out_channels) >= LEAST_CHANNELS
        and (min(channels, out_channels) <= MOST_CHANNELS or _dtype(x) == torch.float32)
        and height * width >= LEAST_PIXELS
    )


def conv2d(
    x: Float[Tensor, "B C H W"], weight: Float[Tensor, "K C 3 3"], bias: Float[Tensor, "K"]
) -> Float[Tensor, "B K H W"]:
    """The convolution of x, with a border of zeros, from products of 8-bit integers.

    Jacob et al. (2018), section 2, https://arxiv.org/abs/1712.05877: q = round(x / s) + z,
    the sum over q - z of one integer multiplication after the other is exact, and s comes back at
    the end. Each picture has a scale s of its own, from its largest values, so that it does not
    depend on its batch; so has each map of the output, for the weights.

    Of SiLU of normally distributed numbers the error is 1.3 % of the output's norm; in bfloat16
    0.4 %.

    Args:
        x: float32 or bfloat16, channels last in memory.
        weight: In any floating format, as is the bias.
        bias: One number for each map of the output.
    """
    dtype = _dtype(x)
    levels, scales = quantise(x, dtype)
    packed = _pack(weight, x.shape)
    y = getattr(torch.ops.onednn, OPERATOR)(
        levels, 1.0, ZERO, packed.levels, packed.scales, packed.zeros, None,
        [1, 1], [1, 1], [1, 1], 1, 1.0, 0, dtype, "none", [], "",
    )  # fmt: skip
    return y.mul_(scales).add_(bias.to(dtype)[:, None, None])


def quantise(
    x: Float[Tensor, "B C H W"], dtype: torch.dtype
) -> tuple[UInt8[Tensor, "B C H W"], Float[Tensor, "B 1 1 1"]]:
    """The levels q of x, and the scale s of each picture: x = s (q - ZERO).

    Args:
        x: float32 or bfloat16.
        dtype: Of the scales; what is scaled by numbers of another is slow.
    """
    levels = torch.empty_like(x, dtype=torch.uint8)
    scales = x.new_empty(len(x), 1, 1, 1, dtype=dtype)
    whole = torch.empty_like(x[:ROWS], dtype=torch.float32)
    for rows, q, scale in zip(x.split(ROWS), levels.split(ROWS), scales.split(ROWS), strict=True):
        h = whole[: len(rows)].copy_(rows)
        lows, highs = (f((1, 2, 3), keepdim=True) for f in (h.amin, h.amax))
        peak = torch.maximum(highs, lows * (-LARGEST / ZERO)).clamp_min_(LEAST_PEAK)
        scale.copy_(peak / LARGEST)
        h.mul_(1 / scale.float()).add_(MANTISSA + ZERO)
        q.copy_(h.view(torch.int32))  # the last byte
    return levels, scales


def _dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _pack(weight: Float[Tensor, "K C 3 3"], shape: torch.Size) -> Packed:
    cache = _packed.get()
    key = (id(weight), shape)
    if cache is not None and key in cache and cache[key].version == weight._version:
        return cache[key]
    whole = weight.detach().float()
    scales = (whole.abs().amax((1, 2, 3)) / 127).clamp_min(1e-30)  # a map may be all zeros
    levels = (whole / scales[:, None, None, None]).round().to(torch.int8)
    ordered = torch.ops.onednn.qconv_prepack(
        levels, scales, 1.0, ZERO, [1, 1], [1, 1], [1, 1], 1, list(shape)
    )
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    packed = Packed(weight, weight._version, ordered, scales, zeros)
    if cache is not None:
        cache[key] = packed
    return packed
