"""Networks that are measured against each other, made and called in the same way."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from _measuring import forward_flops
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinydiffusion.networks.unet import UNet
from tinydiffusion.protocols import TextStates


class Inputs(NamedTuple):
    """Noise to start from, what to predict, and random states in place of a text."""

    sample: Float[Tensor, "B C H W"]
    target: Float[Tensor, "B C H W"]
    timesteps: Int[Tensor, "B"]
    text: TextStates

    @classmethod
    def random(
        cls, batch: int, size: int, tokens: int, text_dim: int, device: torch.device
    ) -> "Inputs":
        """Any pictures, times and texts; on the meta device, only their shapes."""
        sample, target = (torch.randn(batch, 3, size, size, device=device) for _ in range(2))
        text = TextStates(
            torch.randn(batch, tokens, text_dim, device=device),
            torch.ones(batch, tokens, dtype=torch.bool, device=device),
            torch.randn(batch, text_dim, device=device),
        )
        return cls(sample, target, torch.randint(1000, (batch,), device=device), text)


@dataclass(frozen=True)
class Network:
    """How a network is made, and how it is called."""

    build: Callable[[], nn.Module]
    call: Callable[[nn.Module, Inputs], Tensor]

    def count(self, inputs: Inputs) -> tuple[int, int]:
        """Parameters, and FLOPs of a forward pass for these inputs; nothing is computed.

        The two products inside attention count, which some versions of torch miss where
        attention is fused.
        """
        meta = torch.device("meta")
        with meta:
            module = self.build()
        if is_diffusers(module):
            replace_attention(module)
        tokens, width = inputs.text.encoder_hidden_states.shape[1:]
        shapes = Inputs.random(len(inputs.sample), inputs.sample.shape[-1], tokens, width, meta)
        flops = forward_flops(lambda: self.call(module, shapes))
        return sum(p.numel() for p in module.parameters()), flops


def ours(text_dim: int, channels: Sequence[int], **options: Any) -> Network:
    """Our UNet; its other options as they are by default."""

    def build() -> nn.Module:
        return UNet(text_dim=text_dim, pooled_dim=text_dim, channels=channels, **options)

    return Network(build, lambda net, x: net(x.sample, x.timesteps.float(), x.text))


def diffusers_unet(
    text_dim: int, channels: Sequence[int], *, size: int, heads: Sequence[int], groups: int = 32
) -> Network:
    """The UNet of diffusers with attention on all levels but the finest.

    Args:
        text_dim: Width of the text states.
        channels: Of the levels, finest first.
        size: Side of the pictures.
        heads: Of attention, for each level.
        groups: Of normalisation; divides all channels.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    coarser = len(channels) - 1

    def build() -> nn.Module:
        return UNet2DConditionModel(
            sample_size=size,
            in_channels=3,
            out_channels=3,
            block_out_channels=tuple(channels),
            down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * coarser),
            up_block_types=(*["CrossAttnUpBlock2D"] * coarser, "UpBlock2D"),
            cross_attention_dim=text_dim,
            attention_head_dim=cast(Any, tuple(heads)),  # it means the number of heads
            norm_num_groups=groups,
        )

    return Network(
        build, lambda net, x: net(x.sample, x.timesteps, x.text[0], return_dict=False)[0]
    )


def ddpm_pytorch_unet(dim: int, dim_mults: Sequence[int]) -> Network:
    """denoising-diffusion-pytorch's Unet, which knows no text.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    from denoising_diffusion_pytorch import Unet

    return Network(
        lambda: Unet(dim=dim, dim_mults=tuple(dim_mults)), lambda net, x: net(x.sample, x.timesteps)
    )


class PlainAttention:
    """Attention as matmul, softmax, matmul, in place of torch's fused one, in diffusers' UNet."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "B N C"],
        encoder_hidden_states: Float[Tensor, "B L D"] | None = None,
        attention_mask: None = None,
    ) -> Float[Tensor, "B N C"]:
        """What diffusers' own processor returns."""
        assert attention_mask is None
        states = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            rearrange(part, "b n (h d) -> b h n d", h=attn.heads)
            for part in (attn.to_q(hidden_states), attn.to_k(states), attn.to_v(states))
        )
        weights = ((q * attn.scale) @ k.mT).softmax(-1).to(v.dtype)
        return attn.to_out[0](rearrange(weights @ v, "b h n d -> b n (h d)"))


def is_diffusers(module: nn.Module) -> bool:
    """Whether the network is one of diffusers'."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return isinstance(module, UNet2DConditionModel)


def replace_attention(module: Any) -> None:
    """Put `PlainAttention` into diffusers' UNet."""
    module.set_attn_processor(PlainAttention())


def rival_of(flops: int, inputs: Inputs) -> tuple[Network, tuple[int, ...]]:
    """The UNet of diffusers of about as many FLOPs, but no more, and its channels.

    Three levels, about 1 : 2 : 4, in multiples of 16.

    Args:
        flops: Of a forward pass with one picture.
        inputs: Of one picture.

    Raises:
        ValueError: even the smallest has more.
    """
    text_dim, size = inputs.text.encoder_hidden_states.shape[-1], inputs.sample.shape[-1]

    def channels(units: int) -> tuple[int, ...]:
        return tuple(16 * max(1, share * units // 7) for share in (1, 2, 4))

    def network(units: int) -> Network:
        widths = channels(units)
        heads = [width // (16 if width % 32 else 32) for width in widths]
        return diffusers_unet(text_dim, widths, size=size, heads=heads, groups=16)

    units = bisect_right(range(1, 500), flops, key=lambda units: network(units).count(inputs)[1])
    if units == 0:
        raise ValueError(f"diffusers' UNet cannot be made as small as {flops / 1e9:.3g} GFLOP")
    return network(units), channels(units)
