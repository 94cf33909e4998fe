"""The parts of the UNet: embeddings, residual block, attention block, change of resolution."""

import math
from typing import TypeVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tinydiffusion.layers.convolution import Conv3x3
from tinydiffusion.protocols import TextStates

Module = TypeVar("Module", bound=nn.Module)


def sinusoidal_embedding(
    positions: Float[Tensor, "N"], dim: int, max_period: float = 10_000.0
) -> Float[Tensor, "N dim"]:
    """Sines and cosines of the positions at `dim / 2` frequencies, from 1 to 1 / max_period.

    Vaswani et al. (2017), section 3.5. https://arxiv.org/abs/1706.03762
    """
    exponents = torch.arange(dim // 2, device=positions.device) / (dim // 2)
    angles = positions[:, None] * max_period**-exponents
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedding(nn.Module):
    """Timesteps (B,) to vectors (B, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.frequencies = dim // 2
        self.mlp = nn.Sequential(nn.Linear(self.frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, timesteps: Float[Tensor, "B"]) -> Float[Tensor, "B D"]:
        return self.mlp(sinusoidal_embedding(timesteps, self.frequencies))


class PositionEmbedding(nn.Module):
    """A learned projection of the sines of both coordinates, (C, H, W), for any H and W.

    Coordinates run from -1 to 1 over the picture, so that a model keeps its sense of place at
    another size.
    """

    def __init__(self, channels: int, num_frequencies: int = 8) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.project = nn.Linear(4 * num_frequencies, channels)

    def forward(self, height: int, width: int) -> Float[Tensor, "1 C H W"]:
        device = self.project.weight.device
        rows = torch.linspace(-1, 1, height, device=device)
        columns = torch.linspace(-1, 1, width, device=device)
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
        waves = math.pi / 2 * torch.arange(1, self.num_frequencies + 1, device=device)
        angles = rearrange(grid[..., None] * waves, "h w xy f -> h w (xy f)")
        features = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return rearrange(self.project(features), "h w c -> 1 c h w")


class Preview(nn.Module):
    """Maps (B, channels, size, size) from the pooled text alone: what goes where, coarsely.

    Without them the product of text and place is slow to learn: modulation acts on whole
    channels, and attention asks with queries that are still noise. dev/LOG.md has the numbers.
    """

    def __init__(self, pooled_dim: int, channels: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.norm = nn.LayerNorm(pooled_dim)
        self.project = nn.Linear(pooled_dim, channels * size**2)

    def forward(self, pooled: Float[Tensor, "B P"]) -> Float[Tensor, "B K side side"]:
        maps = self.project(self.norm(pooled))
        return rearrange(maps, "b (c h w) -> b c h w", h=self.size, w=self.size)


class PictureNorm(nn.Module):
    """Normalisation over all channels and pixels of a picture, then a scale and shift a channel.

    Group normalisation (Wu & He 2018) with one group. Written as layer normalisation of channels
    that lie last in memory, it is several times faster on CPUs; and unlike layer normalisation
    pixel by pixel it keeps how strong the noise of a pixel is against its neighbours.
    """

    def __init__(self, channels: int, *, affine: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        x = x.permute(0, 2, 3, 1)
        shape = x.shape[1:]
        # One call, which takes a scale for every pixel: on CPUs faster than to scale afterwards.
        scale, shift = (p if p is None else p.expand(shape) for p in (self.weight, self.bias))
        return F.layer_norm(x, shape, scale, shift).permute(0, 3, 1, 2)


class ResBlock(nn.Module):
    """Two 3x3 convolutions; the second's input is scaled and shifted by the conditioning vector.

    The adaptive group normalisation of Dhariwal & Nichol (2021), section 3, equation 1
    (https://arxiv.org/abs/2105.05233), with a last convolution that starts at zero.
    """

    def __init__(self, in_channels: int, out_channels: int, cond_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = PictureNorm(in_channels)
        self.conv1 = Conv3x3(in_channels, out_channels)
        self.modulation = nn.Linear(cond_dim, 2 * out_channels)
        self.norm2 = PictureNorm(out_channels, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(Conv3x3(out_channels, out_channels))
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(
        self, x: Float[Tensor, "B C H W"], cond: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B C2 H W"]:
        h = self.conv1(silu(self.norm1(x)))
        scale, shift = rearrange(self.modulation(cond), "b (two c) -> two b c 1 1", two=2)
        h = self.norm2(h)
        # Not addcmul, whose backward is slow on CPUs.
        h = add(h * (1 + scale) if torch.is_grad_enabled() else h.mul_(1 + scale), shift)
        return add(self.conv2(self.dropout(silu(h))), self.shortcut(x))


def silu(x: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """SiLU of x; over x where nothing learns, as what is read again soon is then in the cache."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def add(x: Float[Tensor, "*S"], y: Float[Tensor, "*#S"]) -> Float[Tensor, "*S"]:
    """Their sum, likewise over x where nothing learns."""
    return x + y if torch.is_grad_enabled() else x.add_(y)


class Attention(nn.Module):
    """Multi-head attention of pixels to pixels, or to the tokens of a text.

    Written as matmul, softmax, matmul: on CPUs torch's fused attention is several times slower in
    bfloat16 at these sizes.
    """

    def __init__(self, channels: int, context_dim: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = channels // head_dim
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_kv = nn.Linear(context_dim, 2 * channels, bias=False)
        self.to_out = zero_init(nn.Linear(channels, channels))

    def forward(
        self,
        x: Float[Tensor, "B N C"],
        context: Float[Tensor, "B L D"],
        mask: Bool[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B N C"]:
        q = rearrange(self.to_q(x), "b n (h d) -> b h n d", h=self.num_heads)
        k, v = rearrange(
            self.to_kv(context), "b l (two h d) -> two b h l d", two=2, h=self.num_heads
        )
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
        out = rearrange(scores.softmax(dim=-1).to(v.dtype) @ v, "b h n d -> b n (h d)")
        return self.to_out(out)


class AttentionBlock(nn.Module):
    """Self-attention, cross-attention to the text states and an MLP, each added to its input."""

    def __init__(self, channels: int, text_dim: int, head_dim: int, mlp_ratio: int = 2) -> None:
        super().__init__()
        self.position = PositionEmbedding(channels)
        self.norm_self = nn.LayerNorm(channels)
        self.self_attention = Attention(channels, channels, head_dim)
        self.norm_cross = nn.LayerNorm(channels)
        self.norm_text = nn.LayerNorm(text_dim)
        self.cross_attention = Attention(channels, text_dim, head_dim)
        self.norm_mlp = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, mlp_ratio * channels),
            nn.GELU(),
            zero_init(nn.Linear(mlp_ratio * channels, channels)),
        )

    def forward(self, x: Float[Tensor, "B C H W"], text: TextStates) -> Float[Tensor, "B C H W"]:
        height, width = x.shape[-2:]
        tokens = rearrange(x + self.position(height, width).to(x.dtype), "b c h w -> b (h w) c")
        normed = self.norm_self(tokens)
        tokens = tokens + self.self_attention(normed, normed)
        states = self.norm_text(text.encoder_hidden_states)
        tokens = tokens + self.cross_attention(self.norm_cross(tokens), states, text.mask)
        tokens = tokens + self.mlp(self.norm_mlp(tokens))
        return rearrange(tokens, "b (h w) c -> b c h w", h=height)


class Downsample(nn.Conv2d):
    """Half the resolution, rounded up, by a strided convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, stride=2, padding=1)


class Upsample(nn.Module):
    """The resolution of `like`, by nearest neighbours and a convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = Conv3x3(in_channels, out_channels)

    def forward(
        self, x: Float[Tensor, "B C H W"], like: Float[Tensor, "B C3 H3 W3"]
    ) -> Float[Tensor, "B C2 H3 W3"]:
        return self.conv(F.interpolate(x, size=like.shape[-2:], mode="nearest"))


def zero_init(module: Module) -> Module:
    """The module with all its parameters at zero: a residual branch that starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
