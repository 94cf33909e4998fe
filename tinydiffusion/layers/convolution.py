"""Convolutions of 3x3 pixels, by the fastest kernel that there is."""

from jaxtyping import Float
from torch import Tensor, nn

from tinydiffusion.layers.kernels.choice import faster_kernel


class Conv3x3(nn.Conv2d):
    """A convolution that keeps the picture's size.

    It is called like any layer, and its weights are read at every call: whatever wraps it or
    changes it, such as an adapter, finds what it would of an `nn.Conv2d`.

    Args:
        in_channels: Of the input.
        out_channels: Of the output.
        kernel_size: As the rest, of `nn.Conv2d`: what adapters make of a layer takes them.
        stride: In pixels.
        padding: Pixels of zeros around the picture.
        dilation: Pixels from one weight to the next.
        groups: Of channels.
        bias: Whether a number is added to each map of the output.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 1,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        )

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H2 W2"]:
        kernel = faster_kernel(self, input)
        if kernel is None or self.bias is None:
            return super().forward(input)
        return kernel(input, self.weight, self.bias)
