"""The window of a prepared picture that a visit uses: in the middle or drawn; mirrored or not."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from tinydiffusion.pictures.decode import FITS, Size

CROPS = ("center", "random")
MAX_VALUES = (255, 2**32 - 1)


class View(NamedTuple):
    """Options that determine how pictures are fitted to the size of the examples, see `view_of`."""

    size: Size
    fit: str = "crop"
    crop: str = "center"
    flip: bool = False
    max_value: int | None = None

    @property
    def draws_window(self) -> bool:
        """Whether each visit draws its window, so that more than a window is stored."""
        return self.fit == "crop" and self.crop == "random"


def view_of(
    size: int | Sequence[int],
    *,
    fit: str = "crop",
    crop: str = "center",
    flip: bool = False,
    max_value: int | None = None,
) -> View:
    """Check the options that determine the pictures of a data set, and return them as a view.

    Args:
        size: Side of a square, or height and width, in pixels.
        fit: "crop" covers the size; "pad" fits the whole picture into it, with a white border.
        crop: With fit "crop": the window in the "center", or a "random" one at each visit.
        flip: Whether a visit mirrors the picture left to right with probability 1/2.
        max_value: The value that means white in files of more than 8 bits.

    Raises:
        ValueError: one of these is out of its range.
    """
    sides = tuple(map(int, size)) if isinstance(size, Sequence) else (int(size), int(size))
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(
            f"size must be at least 1, got {size}; one number, or height and width such as [32, 48]"
        )
    if fit not in FITS:
        raise ValueError(f"fit must be one of {', '.join(FITS)}, got {fit!r}")
    if crop not in CROPS:
        raise ValueError(f"crop must be one of {', '.join(CROPS)}, got {crop!r}")
    if fit == "pad" and crop == "random":
        raise ValueError("crop='random' draws a window, and fit='pad' cuts nothing; leave out one")
    lowest, highest = MAX_VALUES
    if max_value is not None and not lowest <= max_value <= highest:
        raise ValueError(
            f"max_value must be in [{lowest}, {highest}], such as 4095 for 12 bits, got {max_value}"
        )
    return View((sides[0], sides[1]), fit, crop, flip, max_value)


def check_limit(limit: int | None) -> None:
    """Raise ValueError unless `limit` is at least 1, or None."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, or null for all, got {limit}")


def middle_window(pixels: UInt8[Tensor, "C H W"], size: Size) -> UInt8[Tensor, "C height width"]:
    """Return the middle window as a copy, so that changing it does not change the picture."""
    height, width = size
    return _window(pixels, size, (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2)


def drawn_window(
    pixels: UInt8[Tensor, "C H W"], view: View, generator: torch.Generator
) -> UInt8[Tensor, "C height width"]:
    """Return a window for one visit as a copy; draw place and mirroring from `generator`."""
    if view.draws_window:
        room = zip(pixels.shape[1:], view.size, strict=True)
        top, left = [_draw(side - length + 1, generator) for side, length in room]
        window = _window(pixels, view.size, top, left)
    else:
        window = middle_window(pixels, view.size)
    return window.flip(-1) if view.flip and _draw(2, generator) else window


def _window(
    pixels: UInt8[Tensor, "C H W"], size: Size, top: int, left: int
) -> UInt8[Tensor, "C height width"]:
    return pixels[:, top : top + size[0], left : left + size[1]].clone()


def _draw(high: int, generator: torch.Generator) -> int:
    """Draw an integer in [0, high)."""
    return int(torch.randint(high, (), generator=generator))
