"""What a visit sees of a prepared picture: a square, in the middle or drawn; mirrored or not."""

import torch
from jaxtyping import UInt8
from torch import Tensor

CROPS = ("center", "random")


def check_view(size: int, crop: str, limit: int | None) -> None:
    """Raise ValueError where one of these options of a data set is out of its range."""
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if crop not in CROPS:
        raise ValueError(f"crop must be one of {', '.join(CROPS)}, got {crop!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, or null for all, got {limit}")


def middle_square(pixels: UInt8[Tensor, "C H W"], size: int) -> UInt8[Tensor, "C S S"]:
    """The square in the middle: a copy, so that who changes it does not change the picture."""
    return _square(pixels, size, *((side - size) // 2 for side in pixels.shape[1:]))


def drawn_square(
    pixels: UInt8[Tensor, "C H W"], size: int, crop: str, flip: bool, generator: torch.Generator
) -> UInt8[Tensor, "C S S"]:
    """A square for one visit: a copy, place and mirroring drawn from `generator`."""
    if crop == "center":
        square = middle_square(pixels, size)
    else:
        corner = (_draw(side - size + 1, generator) for side in pixels.shape[1:])
        square = _square(pixels, size, *corner)
    return square.flip(-1) if flip and _draw(2, generator) else square


def _square(
    pixels: UInt8[Tensor, "C H W"], size: int, top: int, left: int
) -> UInt8[Tensor, "C S S"]:
    return pixels[:, top : top + size, left : left + size].clone()


def _draw(high: int, generator: torch.Generator) -> int:
    """An integer in [0, high)."""
    return int(torch.randint(high, (), generator=generator))
