"""Pictures as objectives see them."""

from jaxtyping import Float, UInt8
from torch import Tensor


def to_float(images: UInt8[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Pictures in [-1, 1] from uint8."""
    return images.float() / 127.5 - 1
