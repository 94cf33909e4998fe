"""Proves the UNet's sizes: any even picture, 1 M to 100 M parameters, and that all of it learns."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from tinydiffusion.abilities import Previewing
from tinydiffusion.networks.unet import UNet

TEXT = {"text_dim": 24, "pooled_dim": 16}


@pytest.mark.parametrize(
    ("size", "patch_size"),
    [(s, p) for s in (16, 30, 32, 64) for p in (1, 2, 4) if s % p == 0] + [(18, 2), (256, 4)],
)
@pytest.mark.parametrize("channels", [(32,), (32, 64), (32, 64, 64)])
def test_output_has_the_pictures_shape(text_inputs, size, patch_size, channels):
    with torch.device("meta"):  # shapes alone, nothing is computed
        network = UNet(**TEXT, channels=channels, patch_size=patch_size, attention_levels=())
        sample, timesteps, text = (
            x.to("meta") if isinstance(x, torch.Tensor) else x.map(lambda part: part.to("meta"))
            for x in text_inputs(2, 24, 16, 6, shape=(3, size, size))
        )
        assert network(sample, timesteps, text).shape == sample.shape


@pytest.mark.parametrize("shape", [(3, 30, 30), (3, 16, 30), (3, 18, 64)])
def test_odd_inner_sizes_and_oblongs_are_computed(text_inputs, shape):
    network = UNet(**TEXT, channels=(32, 32, 32), layers_per_block=1, attention_levels=(0, 2))
    text_inputs.without_zeros(network)
    sample, timesteps, text = text_inputs(2, 24, 16, 6, shape=shape)
    output = network(sample, timesteps, text)
    assert output.shape == sample.shape
    assert output.isfinite().all()


@pytest.mark.parametrize(
    ("millions", "options"),
    [
        (1, {"channels": (32, 64), "layers_per_block": 1, "preview_channels": 4}),
        (10, {"channels": (96, 192)}),
        (30, {"channels": (128, 256, 256), "attention_levels": (1, 2)}),
        (100, {"channels": (192, 384, 512), "attention_levels": (1, 2), "head_dim": 64}),
    ],
)
def test_one_to_a_hundred_million_parameters(millions, options):
    with torch.device("meta"):
        network = UNet(text_dim=512, pooled_dim=512, **options)
    count = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert millions / 1.4 < count < millions * 1.4


@pytest.mark.parametrize("patch_size", [1, 2])
def test_every_parameter_learns_within_four_steps(text_inputs, patch_size):
    """Branches begin at zero: their last layer moves first, what lies before it a step later."""
    torch.manual_seed(0)
    network = UNet(
        **TEXT,
        channels=(32, 64),
        layers_per_block=1,
        attention_levels=(0, 1),
        patch_size=patch_size,
    )
    sample, timesteps, text = text_inputs(4, 24, 16, 6, shape=(3, 8, 8))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(4):
        optimizer.zero_grad()
        (network(sample, timesteps, text) - sample.flip(-1)).square().mean().backward()
        optimizer.step()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_patches_are_those_of_pixel_unshuffle(text_inputs, patch_size):
    network = UNet(**TEXT, channels=(32, 32), patch_size=patch_size)
    sample, _, _ = text_inputs(2, 24, 16, 6)
    folded = network._fold(sample)
    assert torch.equal(folded, F.pixel_unshuffle(sample, patch_size))
    assert torch.equal(network._unfold(folded), sample)


@pytest.mark.parametrize(("size", "channels"), [(8, 16), (1, 3), (16, 5)])
def test_preview_is_made_of_pooled_text_alone(text_inputs, size, channels):
    previewing = {"preview_size": size, "preview_channels": channels}
    network = UNet(**TEXT, channels=(32, 32), **previewing)
    _, _, text = text_inputs(2, 24, 16, 6)
    preview = network.preview(text)
    assert isinstance(network, Previewing)
    assert preview.shape == (2, 3, size, size)
    states = text._replace(encoder_hidden_states=-text.encoder_hidden_states)
    assert torch.equal(network.preview(states), preview)
    assert not torch.equal(network.preview(text._replace(pooled=-text.pooled)), preview)


def test_what_the_preview_says_arrives_at_its_place(text_inputs):
    """A preview that differs on the left alone changes the picture's left alone, near the stem."""
    network = UNet(**TEXT, channels=(32,), layers_per_block=1, attention_levels=(), patch_size=1)
    sample, _, text = text_inputs(1, 24, 16, 6)
    stem = []
    network.down[0].register_forward_pre_hook(lambda module, inputs: stem.append(inputs[0]))
    network(sample, torch.zeros(1), text)
    bias = network.text_preview.project.bias.data.view(16, 8, 8)
    bias[:, :, :3] += 1  # the left 6 of 16 pixels, and 1 more by interpolation, 1 by convolution
    network(sample, torch.zeros(1), text)
    changed = (stem[1] - stem[0]).abs().amax(dim=(0, 1, 2)) > 1e-6
    assert changed.tolist() == [True] * 8 + [False] * 8


def test_width_of_the_embedding_is_four_times_the_finest_levels_unless_told(text_inputs):
    for options, width in (({}, 128), ({"time_embedding_dim": 8}, 8)):
        network = UNet(**TEXT, channels=(32, 32), layers_per_block=1, **options)
        assert network.middle.res_block.modulation.in_features == width
        assert network(*text_inputs(2, 24, 16, 6)).shape == (2, 3, 16, 16)


def test_a_new_network_predicts_zero(text_inputs):
    network = UNet(**TEXT, channels=(32, 32), layers_per_block=1)
    assert not network(*text_inputs(2, 24, 16, 6)).any()


def test_memory_layout_of_the_picture_does_not_matter(text_inputs):
    network = text_inputs.without_zeros(UNet(**TEXT, channels=(32, 32), layers_per_block=1))
    sample, timesteps, text = text_inputs(2, 24, 16, 6)
    last = sample.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(last, timesteps, text), network(sample, timesteps, text))


def test_bfloat16_autocast_is_close(text_inputs):
    network = text_inputs.without_zeros(UNet(**TEXT, channels=(32, 32), layers_per_block=1)).eval()
    inputs = text_inputs(2, 24, 16, 6)
    exact = network(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(*inputs).float()
    assert (rounded - exact).std() < 0.05 * exact.std()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": (32, 48)}, r"multiples of head_dim 32, got 48"),
        ({"channels": (40, 64), "attention_levels": (0,)}, r"head_dim 32, got 40"),
        ({"channels": (32, 80), "attention_levels": ()}, r"head_dim 32, got 80"),
        ({"attention_levels": (2,)}, r"in \[0, 1\], got 2"),
        ({"attention_levels": (-1,)}, r"in \[0, 1\], got -1"),
        ({"dropout": 1.5}, "1.5"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"preview_size": 0}, r"preview_size must be in \[1, 64\], got 0"),
        ({"layers_per_block": 10**9}, r"layers_per_block must be in \[1, 64\], got 1000000000"),
        ({"channels": (32, 2**62)}, r"channels must be in \[1, 8192\], got 4611686018427387904"),
        ({"channels": ()}, "channels must name the width of 1 to 16 levels, got 0"),
        ({"channels": (32,) * 17}, "channels must name the width of 1 to 16 levels, got 17"),
        ({"time_embedding_dim": 6}, r"time_embedding_dim must be a multiple of 4, got 6"),
        ({"time_embedding_dim": 0}, r"time_embedding_dim must be in \[1, 65536\], got 0"),
        ({"preview_channels": 2}, "preview_channels must be at least in_channels 3, got 2"),
    ],
)
def test_widths_and_levels_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        UNet(**TEXT, **options)


def test_a_size_that_is_no_multiple_of_the_patch_is_named(text_inputs):
    network = UNet(**TEXT, channels=(32, 32), patch_size=4)
    with pytest.raises(ValueError, match=r"\(16, 30\) must be a multiple of patch_size 4"):
        network(*text_inputs(2, 24, 16, 6, shape=(3, 16, 30)))


@torch.no_grad()
@pytest.mark.parametrize("bfloat16", [False, True])
def test_with_its_text_told_first_it_is_the_same_to_the_bit(text_inputs, bfloat16):
    network = UNet(**TEXT, channels=(32, 32), layers_per_block=1)
    text_inputs.without_zeros(network)
    previews = []
    network.text_preview.register_forward_hook(lambda *_: previews.append(1))
    sample, timesteps, text = text_inputs(2, 24, 16, 6, shape=(3, 16, 16))
    wide = text_inputs(2, 24, 16, 6, shape=(3, 16, 24))[0]
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        predict = network.with_text(text)
        told = [predict(x, t) for x in (sample, wide) for t in (timesteps, timesteps / 2)]
        assert len(previews) == 2  # one a size
        for output, (x, t) in zip(
            told, [(x, t) for x in (sample, wide) for t in (timesteps, timesteps / 2)], strict=True
        ):
            assert torch.equal(output, network(x, t, text))
