"""The resizes that published numbers were made with; they are part of a metric's name."""

from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate


def tf1(images: UInt8[Tensor, "N 3 H W"], size: int) -> Float[Tensor, "N 3 size size"]:
    """Resize bilinearly on TensorFlow 1's asymmetric grid, not antialiased; values in [0, 255]."""
    from torch_fidelity.interpolate_compat_tensorflow import (
        interpolate_bilinear_2d_like_tensorflow1x,
    )

    return interpolate_bilinear_2d_like_tensorflow1x(
        images.float(), size=(size, size), align_corners=False
    )


def bilinear(images: UInt8[Tensor, "N 3 H W"], size: int) -> Float[Tensor, "N 3 size size"]:
    """Resize bilinearly on the half-pixel grid, not antialiased; values in [0, 255]."""
    return interpolate(images.float(), (size, size), mode="bilinear", align_corners=False)


def bicubic(images: UInt8[Tensor, "N 3 H W"], size: int) -> Float[Tensor, "N 3 size size"]:
    """Resize by PIL's antialiased bicubic in floating point, clipped to [0, 255], not rounded.

    Parmar et al. (2022), section 3, https://arxiv.org/abs/2104.11222.
    """
    # In float64, as PIL sums; float32 would be 1e-3 of a level away.
    pictures = images.double()
    resized = interpolate(pictures, (size, size), mode="bicubic", antialias=True)
    return resized.clamp(0, 255).float()
