"""SiLU and convolution in 8-bit integers: what is rounded how, for which layers, and when."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tinydiffusion.layers.kernels import int8
from tinydiffusion.layers.kernels.int8 import (
    LARGEST,
    ZERO,
    conv2d,
    int8_convolutions,
    int8_obstacle,
    pays,
    quantise,
)
from tinydiffusion.layers.precision import uses_bfloat16, uses_int8
from tinydiffusion.networks.unet import UNet
from tinydiffusion.protocols import TextStates

CPU = torch.device("cpu")
WIDE = (16, 96, 16, 16)
needs_vnni = pytest.mark.skipif(
    int8_obstacle(CPU) is not None, reason=f"no int8 convolutions: {int8_obstacle(CPU)}"
)
dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"]
)


def layer(batch=3, channels=20, maps=7, height=6, width=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = F.silu(2 * torch.randn(batch, channels, height, width, generator=generator))
    weight = torch.randn(maps, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5
    bias = torch.randn(maps, generator=generator)
    return x.to(dtype).contiguous(memory_format=torch.channels_last), weight, bias


def exact(x, weight, bias):
    return F.conv2d(x.double(), weight.double(), bias.double(), padding=1)


def relative_error(value, true):
    return ((value.double() - true).norm() / true.norm()).item()


# ---- rounding --------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("count", [1, 16, 37])
def test_the_levels_are_the_nearest_of_each_pictures_scale(dtype, spread, count):
    generator = torch.Generator().manual_seed(1)
    x = (spread * torch.randn(count, 4, 3, 5, generator=generator)).to(dtype)
    x[0, 0, 0, 0] = -spread * 5  # more below zero than above it
    levels, scales = quantise(x, dtype)
    assert scales.dtype == dtype
    back = scales.double() * (levels.double() - ZERO)
    off = (back - x.double()).abs() / scales.double()
    assert off.max() <= 0.5 + 1e-3 * LARGEST * (dtype == torch.float32 and spread > 1e3) + 1e-4
    above, below = levels.flatten(1).amax(1), levels.flatten(1).amin(1)
    if spread:  # one end of the range is used up
        assert ((above >= 253) | (below <= 1)).all()


def test_no_picture_depends_on_its_batch():
    x, _, _ = layer(batch=40)
    levels, scales = quantise(x, torch.bfloat16)
    for i in (0, 15, 16, 39):
        alone, scale = quantise(x[i : i + 1], torch.bfloat16)
        assert torch.equal(alone[0], levels[i])
        assert torch.equal(scale[0], scales[i])


# ---- the convolution -------------------------------------------------------------------------


@needs_vnni
@pytest.mark.parametrize("size", [(6, 5), (1, 1), (16, 16)])
def test_it_is_the_convolution_of_what_was_rounded_border_included(size):
    x, weight, bias = layer(height=size[0], width=size[1])
    levels, scales = quantise(x, torch.float32)
    steps = weight.abs().amax((1, 2, 3), keepdim=True) / 127
    rounded = steps.double() * (weight / steps).round().double()
    pictures = scales.double() * (levels.double() - ZERO)
    true = F.conv2d(pictures, rounded, bias.double(), padding=1)
    torch.testing.assert_close(conv2d(x, weight, bias).double(), true, rtol=1e-5, atol=1e-5)


@needs_vnni
@dtypes
def test_its_error_is_no_more_than_the_docstring_says(dtype):
    x, weight, _ = layer(4, 96, 96, 16, 16, dtype)
    bias = torch.zeros(96)
    y = conv2d(x, weight, bias)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(y, exact(x, weight, bias)) < 0.013


@needs_vnni
def test_under_autocast_the_output_is_in_bfloat16():
    x, weight, bias = layer()
    with torch.autocast("cpu", torch.bfloat16):
        y = conv2d(x, weight, bias)
    assert y.dtype == torch.bfloat16
    assert relative_error(y, exact(x, weight, bias)) < 0.012


@needs_vnni
def test_a_map_without_weights_is_its_bias():
    x, weight, bias = layer()
    weight[2] = 0
    y = conv2d(x, weight, bias)
    assert (y[:, 2] == bias[2]).all()


# ---- where and when --------------------------------------------------------------------------


def test_it_is_for_wide_layers_within_the_context_and_without_gradients():
    x = torch.empty(WIDE, device="meta")
    with torch.no_grad():
        assert not pays(x, 96)
        with int8_convolutions(True):
            assert pays(x, 96)
            assert not pays(x, 95)
            assert not pays(x[:, :95], 96)
            assert pays(x[:1, :, :8], 96)
            assert not pays(x[:, :, :7], 96)
            with torch.enable_grad():
                assert not pays(x, 96)
            with int8_convolutions(False):
                assert not pays(x, 96)
            assert pays(x, 96)
        assert not pays(x, 96)
        with pytest.raises(KeyError), int8_convolutions(True):
            raise KeyError
        assert not pays(x, 96)


@needs_vnni
def test_weights_are_packed_once_a_context_and_anew_in_the_next(monkeypatch):
    x, weight, bias = layer()
    rounded = []
    real = torch.Tensor.round
    monkeypatch.setattr(torch.Tensor, "round", lambda t: rounded.append(t.shape) or real(t))
    with int8_convolutions(True):
        first = [conv2d(x, weight, bias) for _ in range(3)]
    assert rounded == [weight.shape]
    assert torch.equal(first[0], first[2])
    weight.mul_(2)
    with int8_convolutions(True):
        second = conv2d(x, weight, torch.zeros_like(bias))
    torch.testing.assert_close(second, 2 * (first[0] - bias[:, None, None]), rtol=1e-4, atol=1e-4)


@needs_vnni
def test_weights_that_change_are_packed_again():
    x, weight, bias = layer()
    with int8_convolutions(True):
        conv2d(x, weight, bias)
        weight.mul_(-3)
        assert relative_error(conv2d(x, weight, bias), exact(x, weight, bias)) < 0.02


@needs_vnni
def test_weights_that_are_gone_are_not_taken_for_new_ones():
    x, weight, bias = layer()
    with int8_convolutions(True):
        for factor in range(1, 20):  # Python gives the ids of what is gone to what is new
            scaled = factor * weight
            y = conv2d(x, scaled, bias)
            assert relative_error(y, exact(x, scaled, bias)) < 0.02
            del scaled


def test_the_widest_layers_are_winograds_in_bfloat16():
    x = torch.empty(16, 416, 16, 16, device="meta")
    with torch.no_grad(), int8_convolutions(True):
        assert pays(x, 416)
        assert not pays(x.bfloat16(), 416)
        assert pays(x.bfloat16(), 320)
        with torch.autocast("cpu", torch.bfloat16):
            assert not pays(x, 416)


@pytest.fixture
def wide():
    torch.manual_seed(0)
    network = UNet(text_dim=8, pooled_dim=8, channels=(96, 32), layers_per_block=1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.03) if parameter.abs().max() == 0 else None
    text = TextStates(
        torch.randn(16, 4, 8), torch.ones(16, 4, dtype=torch.bool), torch.randn(16, 8)
    )
    return network.eval(), (torch.randn(16, 3, 32, 32), torch.linspace(0, 999, 16), text)


@needs_vnni
@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_wide_network_draws_about_the_same(wide, bfloat16, monkeypatch):
    network, inputs = wide
    shapes = []
    real = int8.conv2d

    def watched(x, weight, bias):
        shapes.append((x.shape[1], len(weight), x.shape[2]))
        return real(x, weight, bias)

    monkeypatch.setattr(int8, "conv2d", watched)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        plain = network(*inputs)
        assert not shapes
        with int8_convolutions(True):
            mine = network(*inputs)
    assert shapes == [(96, 96, 16)] * 2 + [(128, 96, 16), (96, 96, 16), (192, 96, 16), (96, 96, 16)]
    assert not torch.equal(mine, plain)
    assert relative_error(mine, plain.double()) < 0.03


def test_training_does_not_use_it(wide, monkeypatch):
    network, inputs = wide
    monkeypatch.delattr(int8, "conv2d")
    with int8_convolutions(True):
        network(*inputs).sum().backward()


# ---- which devices ---------------------------------------------------------------------------


@pytest.fixture
def processor(monkeypatch):
    def has(**answers):
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda a=answer: a)

    has(vnni=True, amx_tile=False, avx512_bf16=True)
    return has


def test_auto_takes_int8_with_vnni_and_without_amx(processor):
    assert uses_int8("auto", CPU)
    assert uses_bfloat16("int8", CPU)
    assert not uses_int8("bfloat16", CPU)
    assert not uses_int8("float32", CPU)
    assert not uses_int8("auto", torch.device("cuda"))
    processor(avx512_bf16=False)
    assert uses_int8("auto", CPU)
    assert not uses_bfloat16("int8", CPU)
    processor(amx_tile=True)
    assert not uses_int8("auto", CPU)
    assert uses_int8("int8", CPU)
    processor(vnni=False)
    assert not uses_int8("auto", CPU)


@pytest.mark.parametrize(
    ("device", "answers", "why"),
    [
        ("cuda", {}, "it is for CPUs, not for cuda"),
        ("cpu", {"vnni": False}, "this CPU has no AVX512-VNNI"),
    ],
)
def test_int8_that_cannot_be_had_says_why(processor, device, answers, why):
    processor(**answers)
    with pytest.raises(ValueError, match=f"got int8: {why}"):
        uses_int8("int8", torch.device(device))


def test_a_torch_without_onednn_has_no_int8(processor, monkeypatch):
    monkeypatch.setattr(int8, "OPERATOR", "no_such_operator")
    assert int8_obstacle(CPU) == "this build of torch has no oneDNN"
    assert not uses_int8("auto", CPU)
