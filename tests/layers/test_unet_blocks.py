"""Proves the UNet's parts equal to those of torch and diffusers, and its sense of place."""

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch.nn import functional as F  # noqa: N812

from tinydiffusion.layers.blocks import (
    Attention,
    Downsample,
    PictureNorm,
    PositionEmbedding,
    ResBlock,
    Upsample,
    sinusoidal_embedding,
)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(module, seed=0):
    """The module with random parameters: nothing is hidden by a zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return module


@pytest.mark.parametrize("dim", [2, 32, 128])
def test_sinusoidal_embedding_equals_that_of_diffusers(dim):
    timesteps = torch.tensor([0.0, 1.0, 37.5, 999.0])
    expected = get_timestep_embedding(timesteps, dim, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(sinusoidal_embedding(timesteps, dim), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_picture_norm_equals_group_norm_with_one_group(layout):
    norm = filled(PictureNorm(6))
    x = (3 * normal(4, 6, 5, 7) + 2).to(memory_format=layout)
    torch.testing.assert_close(norm(x), F.group_norm(x, 1, norm.weight, norm.bias))


def test_picture_norm_without_affine_has_nothing_to_train():
    norm = PictureNorm(6, affine=False)
    x = normal(2, 6, 4, 4)
    assert not list(norm.parameters())
    torch.testing.assert_close(norm(x), F.group_norm(x, 1))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_torchs(masked):
    attention = filled(Attention(24, 10, head_dim=8))
    x, context = normal(3, 5, 24), normal(3, 7, 10, seed=1)
    mask = torch.arange(7) < torch.tensor([[7], [1], [4]]) if masked else None
    q, k, v = attention.to_q(x), *attention.to_kv(context).chunk(2, dim=-1)
    q, k, v = (part.unflatten(-1, (3, 8)).transpose(1, 2) for part in (q, k, v))
    expected = F.scaled_dot_product_attention(
        q, k, v, attn_mask=None if mask is None else mask[:, None, None, :]
    )
    expected = attention.to_out(expected.transpose(1, 2).flatten(-2))
    torch.testing.assert_close(attention(x, context, mask), expected)


def test_res_block_begins_as_its_shortcut():
    x, cond = normal(2, 8, 4, 4), normal(2, 5, seed=1)
    torch.testing.assert_close(ResBlock(8, 8, 5, dropout=0.0)(x, cond), x, rtol=0, atol=0)
    block = ResBlock(8, 12, 5, dropout=0.0)
    torch.testing.assert_close(block(x, cond), block.shortcut(x), rtol=0, atol=0)


def test_res_block_scales_and_shifts_by_the_conditioning():
    block = filled(ResBlock(8, 8, 5, dropout=0.0))
    x, cond = normal(2, 8, 4, 4), normal(2, 5, seed=1)
    scale, shift = block.modulation(cond)[:, :, None, None].chunk(2, dim=1)
    h = F.group_norm(block.conv1(F.silu(block.norm1(x))), 1) * (1 + scale) + shift
    torch.testing.assert_close(block(x, cond), x + block.conv2(F.silu(h)))


def test_dropout_acts_in_training_alone():
    block = filled(ResBlock(8, 8, 5, dropout=0.5))
    x, cond = normal(2, 8, 4, 4), normal(2, 5, seed=1)
    assert not torch.equal(block(x, cond), block(x, cond))
    block.eval()
    assert torch.equal(block(x, cond), block(x, cond))


@pytest.mark.parametrize(("height", "width"), [(4, 4), (15, 15), (7, 8), (1, 3)])
def test_upsample_undoes_the_size_of_downsample(height, width):
    x = normal(2, 8, height, width)
    half = Downsample(8, 12)(x)
    assert half.shape == (2, 12, -(-height // 2), -(-width // 2))
    assert Upsample(12, 5)(half, like=x).shape == (2, 5, height, width)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (4, 4), (15, 9), (64, 2)])
def test_positions_exist_for_any_size(height, width):
    position = PositionEmbedding(12)(height, width)
    assert position.shape == (1, 12, height, width)
    assert position.isfinite().all()


def test_every_position_of_a_picture_differs():
    """... by far more than the network could overlook, in the fine grid of 32 x 32 too."""
    places = PositionEmbedding(64)(32, 32)[0].flatten(1).T
    distances = torch.cdist(places, places).fill_diagonal_(torch.inf)
    assert distances.min() > 0.05 * distances[distances.isfinite()].mean()


def test_positions_keep_their_meaning_at_another_size():
    position = PositionEmbedding(12)
    # 15 = 2 * 8 - 1 points hold the 8 points among them.
    torch.testing.assert_close(position(15, 29)[..., ::2, ::4], position(8, 8))
