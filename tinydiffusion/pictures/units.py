"""Conversion of pictures to the range that objectives use."""

from jaxtyping import Float, UInt8
from torch import Tensor


def to_float(images: UInt8[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Convert pictures from uint8 to [-1, 1]."""
    return images.float() / 127.5 - 1
