"""Which kernel computes a convolution faster than torch's own, if any."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from tinydiffusion.layers.kernels import int8, winograd

Kernel = Callable[
    [Float[Tensor, "B C H W"], Float[Tensor, "K C 3 3"], Float[Tensor, "K"]],
    Float[Tensor, "B K H W"],
]


def faster_kernel(conv: nn.Conv2d, x: Float[Tensor, "B C H W"]) -> Kernel | None:
    """Find the kernel that computes a layer faster for this input; None where there is none.

    Args:
        conv: Of any size; the kernels are for 3x3 pixels, one pixel of padding and a bias.
        x: Its input.
    """
    sizes = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    if sizes != ((3, 3), (1, 1), (1, 1), (1, 1), 1) or conv.bias is None:
        return None
    if int8.pays(x, conv.out_channels):
        return int8.conv2d
    if winograd.pays(x.shape, conv.out_channels, winograd.dtype_of(x), x.device):
        return winograd.conv2d
    return None
