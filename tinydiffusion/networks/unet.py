"""The UNet noise predictor."""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from tinydiffusion.abilities import Previewing, TextFirst
from tinydiffusion.layers.blocks import (
    AttentionBlock,
    Downsample,
    PictureNorm,
    PositionEmbedding,
    Preview,
    ResBlock,
    TimestepEmbedding,
    Upsample,
    add,
    silu,
    zero_init,
)
from tinydiffusion.protocols import Predict, TextStates

MOST = {
    "channels": 8192,
    "levels": 16,
    "layers_per_block": 64,
    "patch_size": 64,
    "head_dim": 1024,
    "time_embedding_dim": 65536,
    "preview_size": 64,
    "preview_channels": 256,
}
"""Beyond these a number is a slip, and would ask for all the memory that there is."""


Maps = tuple[Float[Tensor, "1 K h w"], Float[Tensor, "B K h w"]]
"""What is added to a picture at the finest level whatever it shows: position, preview."""


class UNet(nn.Module, Previewing, TextFirst):
    """Predicts noise (or v, x_0, velocity) from a noisy picture, its timestep and a text.

    Residual blocks modulated by time and pooled text, attention to pixels and to text tokens on
    the levels named. With `patch_size` p > 1 the picture is folded into p x p patches first
    (pixel unshuffle), which makes every layer p^2 times cheaper. On CPUs, layers of 192 channels
    and more are convolved in a way that takes fewer products (`_winograd.py`).

    The pooled text also gives a preview, `preview_size` pixels wide, which enters beside the
    noisy picture, as the small picture enters a cascade's next stage (Ho et al. 2022, section 2,
    https://arxiv.org/abs/2106.15282), except that nothing but the text makes it.

    Ho et al. (2020), appendix B; Dhariwal & Nichol (2021), section 3; cross-attention as in
    Rombach et al. (2022), section 3.3.

    Args:
        text_dim: Width D of the text states.
        pooled_dim: Width P of the pooled text.
        channels: Width of each level, finest first; multiples of head_dim where there is
            attention.
        layers_per_block: Residual blocks a level, down; one more up.
        attention_levels: Levels with attention, 0 = finest; the middle always has it.
        head_dim: Width of an attention head.
        time_embedding_dim: Width of the vector of time and pooled text that modulates the residual
            blocks, a multiple of 4; by default 4 times that of the finest level. In wide networks a
            third of all weights hangs on it.
        patch_size: Side of the stem's patches; 1 = no folding. Must divide the picture's size.
        preview_size: Side of the preview: 8 for where things are, more for small sets of pictures
            that are to be told apart by their captions.
        preview_channels: Maps of the preview; the first `in_channels` are a small picture.
        dropout: Probability inside residual blocks, in [0, 1).
        gradient_checkpointing: Keep only what enters a stage for the backward pass, and compute
            the stage once more there (Chen et al. 2016, section 3,
            https://arxiv.org/abs/1604.06174): the same gradients from less memory, in about a
            third more time.
        in_channels: Colour channels of the picture.

    Raises:
        ValueError: a width that does not divide as said above, a count below 1 or beyond `MOST`,
            or fewer preview_channels than in_channels.
    """

    def __init__(
        self,
        *,
        text_dim: int,
        pooled_dim: int,
        channels: Sequence[int] = (64, 128),
        layers_per_block: int = 2,
        attention_levels: Sequence[int] = (1,),
        head_dim: int = 32,
        time_embedding_dim: int | None = None,
        patch_size: int = 2,
        preview_size: int = 8,
        preview_channels: int = 16,
        dropout: float = 0.0,
        gradient_checkpointing: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        _check_counts(
            layers_per_block=layers_per_block,
            patch_size=patch_size,
            head_dim=head_dim,
            preview_size=preview_size,
            preview_channels=preview_channels,
        )
        _check_shares(dropout, preview_channels, in_channels)
        _check_widths(channels, attention_levels, head_dim)
        self.patch_size = patch_size
        self.gradient_checkpointing = gradient_checkpointing
        cond_dim = _cond_dim(time_embedding_dim, channels[0])
        self.time_embedding = TimestepEmbedding(cond_dim)
        self.text_embedding = nn.Sequential(
            nn.LayerNorm(pooled_dim), nn.Linear(pooled_dim, cond_dim)
        )
        self.conv_in = nn.Conv2d(in_channels * patch_size**2, channels[0], 3, padding=1)
        self.position = PositionEmbedding(channels[0])
        self.in_channels = in_channels
        self.text_preview = Preview(pooled_dim, preview_channels, preview_size)
        self.preview_in = nn.Conv2d(preview_channels, channels[0], 3, padding=1)

        def attention(level: int) -> nn.Module | None:
            if level not in attention_levels:
                return None
            return AttentionBlock(channels[level], text_dim, head_dim)

        self.down = nn.ModuleList()
        skips = [channels[0]]
        width = channels[0]
        for level, out in enumerate(channels):
            if level > 0:
                self.down.append(Downsample(width, width))
                skips.append(width)
            for _ in range(layers_per_block):
                self.down.append(Stage(width, out, cond_dim, dropout, attention(level)))
                width = out
                skips.append(width)
        self.middle = Stage(
            width, width, cond_dim, dropout, AttentionBlock(width, text_dim, head_dim)
        )
        self.middle_out = ResBlock(width, width, cond_dim, dropout)
        self.up = nn.ModuleList()
        for level, out in reversed(list(enumerate(channels))):
            for _ in range(layers_per_block + 1):
                self.up.append(Stage(width + skips.pop(), out, cond_dim, dropout, attention(level)))
                width = out
            if level > 0:
                self.up.append(Upsample(width, width))
        self.norm_out = PictureNorm(width)
        self.conv_out = zero_init(nn.Conv2d(width, in_channels * patch_size**2, 3, padding=1))
        self.to(memory_format=torch.channels_last)  # 2-3x faster convolutions on CPUs

    def forward(
        self,
        sample: Float[Tensor, "B C H W"],
        timesteps: Float[Tensor, "B"],
        text: TextStates,
        maps: Maps | None = None,
    ) -> Float[Tensor, "B C H W"]:
        cond = F.silu(self.time_embedding(timesteps) + self.text_embedding(text.pooled))
        x = self._fold(sample).contiguous(memory_format=torch.channels_last)
        x = self.conv_in(x)
        position, preview = self._maps(text, x.shape[-2:]) if maps is None else maps
        x = add(add(x, position.to(x.dtype)), preview)
        skips = [x]
        for layer in self.down:
            x = self._stage(layer, x, cond, text) if isinstance(layer, Stage) else layer(x)
            skips.append(x)
        x = self._stage(self.middle, x, cond, text)
        x = self.middle_out(x, cond)
        for layer in self.up:
            if isinstance(layer, Stage):
                x = self._stage(layer, x, cond, text, skips.pop())
            else:
                x = layer(x, like=skips[-1])
        return self._unfold(self.conv_out(silu(self.norm_out(x))))

    def with_text(self, text: TextStates) -> Predict:
        """The network with this text, see `abilities.TextFirst`."""
        maps: dict[torch.Size, Maps] = {}

        def predict(
            sample: Float[Tensor, "B C H W"], timesteps: Float[Tensor, "B"]
        ) -> Float[Tensor, "B C H W"]:
            size = torch.Size(side // self.patch_size for side in sample.shape[-2:])
            if size not in maps:
                maps[size] = self._maps(text, size)
            return self(sample, timesteps, text, maps[size])

        return predict

    def _maps(self, text: TextStates, size: Sequence[int]) -> Maps:
        preview = F.interpolate(self.text_preview(text.pooled), list(size), mode="bilinear")
        return self.position(*size), self.preview_in(preview)

    def _stage(self, stage: "Stage", *inputs: Tensor | TextStates) -> Float[Tensor, "B C H W"]:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(stage, *inputs, use_reentrant=False)
        return stage(*inputs)

    def preview(self, text: TextStates) -> Float[Tensor, "B C side side"]:
        """Guess the small picture from the text alone, see `abilities.Previewing`."""
        return self.text_preview(text.pooled)[:, : self.in_channels]

    def _fold(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        p = self.patch_size
        if x.shape[-2] % p or x.shape[-1] % p:
            raise ValueError(
                f"picture size {tuple(x.shape[-2:])} must be a multiple of patch_size {p}"
            )
        return rearrange(x, "b c (h p) (w q) -> b (c p q) h w", p=p, q=p)

    def _unfold(self, x: Float[Tensor, "B C2 H2 W2"]) -> Float[Tensor, "B C H W"]:
        p = self.patch_size
        return rearrange(x, "b (c p q) h w -> b c (h p) (w q)", p=p, q=p)


class Stage(nn.Module):
    """A residual block, and attention after it where the level has some."""

    def __init__(
        self, in_channels: int, out_channels: int, cond_dim: int, dropout: float,
        attention: nn.Module | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.res_block = ResBlock(in_channels, out_channels, cond_dim, dropout)
        self.attention = attention

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        cond: Float[Tensor, "B D"],
        text: TextStates,
        skip: Float[Tensor, "B C3 H W"] | None = None,
    ) -> Float[Tensor, "B C2 H W"]:
        # Joined here, so that gradient checkpointing keeps both parts and not a copy of them too.
        x = x if skip is None else torch.cat([x, skip], dim=1)
        x = self.res_block(x, cond)
        return x if self.attention is None else self.attention(x, text)


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if not 1 <= value <= MOST[name]:
            raise ValueError(f"{name} must be in [1, {MOST[name]}], got {value}")


def _check_shares(dropout: float, preview_channels: int, in_channels: int) -> None:
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    if preview_channels < in_channels:
        raise ValueError(
            f"preview_channels must be at least in_channels {in_channels}, got {preview_channels}"
        )


def _cond_dim(time_embedding_dim: int | None, finest: int) -> int:
    if time_embedding_dim is None:
        return 4 * finest
    _check_counts(time_embedding_dim=time_embedding_dim)
    if time_embedding_dim % 4:
        raise ValueError(f"time_embedding_dim must be a multiple of 4, got {time_embedding_dim}")
    return time_embedding_dim


def _check_widths(channels: Sequence[int], attention_levels: Sequence[int], head_dim: int) -> None:
    if not 1 <= len(channels) <= MOST["levels"]:
        raise ValueError(
            f"channels must name the width of 1 to {MOST['levels']} levels, got {len(channels)}"
        )
    for width in channels:
        _check_counts(channels=width)
    last = len(channels) - 1
    if bad := [level for level in attention_levels if level not in range(len(channels))]:
        raise ValueError(f"attention_levels must be in [0, {last}], got {bad[0]}")
    for level in {*attention_levels, last}:
        if channels[level] % head_dim:
            raise ValueError(
                f"channels with attention must be multiples of head_dim {head_dim}, "
                f"got {channels[level]}"
            )


PLUGIN = UNet
