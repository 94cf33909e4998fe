"""Winograd's convolution against torch's, forward and backward, and where it is used."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.flop_counter import FlopCounterMode

from tinydiffusion.layers.convolution import Conv3x3
from tinydiffusion.layers.kernels import winograd
from tinydiffusion.layers.kernels.winograd import pays, winograd_conv2d
from tinydiffusion.networks.unet import UNet
from tinydiffusion.protocols import TextStates

CPU = torch.device("cpu")
WIDE = (32, 256, 16, 16)
SHAPES = [(1, 1, 1, 4, 4), (2, 3, 5, 4, 12), (3, 5, 2, 8, 4), (2, 7, 4, 12, 20)]
"""Pictures, channels, maps out, height, width."""


def inputs(batch, channels, maps, height, width, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(maps, channels, 3, 3, generator=generator, dtype=torch.float64)
    bias = torch.randn(maps, generator=generator, dtype=torch.float64)
    weight /= (9 * channels) ** 0.5
    return [x.to(dtype), weight.to(torch.promote_types(dtype, torch.float32)), bias.to(dtype)]


def convolved(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=1)


def gradients(convolution, leaves):
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    out = convolution(*leaves)
    generator = torch.Generator().manual_seed(1)
    toward = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    return out.detach(), *torch.autograd.grad(out, leaves, toward)


def relative_error(value, true):
    return ((value.double() - true).norm() / true.norm()).item()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_in_float64_it_is_torchs_convolution_forward_and_backward(shape, channels_last):
    leaves = inputs(*shape)
    if channels_last:
        leaves[:2] = [x.contiguous(memory_format=torch.channels_last) for x in leaves[:2]]
    for mine, theirs in zip(
        gradients(winograd_conv2d, leaves), gradients(convolved, leaves), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


def test_gradients_are_those_of_finite_differences():
    leaves = [leaf.requires_grad_() for leaf in inputs(1, 2, 2, 4, 8)]
    assert torch.autograd.gradcheck(winograd_conv2d, leaves)


@pytest.mark.parametrize(
    ("dtype", "most"),
    [(torch.float32, 3e-6), (torch.bfloat16, 0.018)],
    ids=["float32", "bfloat16"],
)
def test_rounding_makes_no_more_error_than_the_docstring_says(dtype, most):
    leaves = inputs(8, 256, 64, 16, 16, dtype)
    true = gradients(convolved, [leaf.double() for leaf in leaves])
    mine = gradients(winograd_conv2d, leaves)
    direct = gradients(convolved, [leaf.to(dtype) for leaf in leaves])
    for value, torchs, exact in zip(mine[:3], direct[:3], true[:3], strict=True):
        assert relative_error(value, exact) < most
        assert relative_error(value, exact) < 8 * relative_error(torchs, exact)


def test_the_gradient_of_weights_has_their_format():
    leaves = inputs(2, 8, 8, 8, 8, torch.bfloat16)
    leaves[2] = leaves[2].float()
    _, of_x, of_weight, of_bias = gradients(winograd_conv2d, leaves)
    assert (of_x.dtype, of_weight.dtype, of_bias.dtype) == (
        torch.bfloat16, torch.float32, torch.float32,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_torch_finds_the_operator_well_made(dtype):
    leaves = [leaf.requires_grad_() for leaf in inputs(2, 3, 5, 4, 8, dtype)]
    loose = {"rtol": 0.1, "atol": 0.1} if dtype == torch.bfloat16 else {}
    torch.library.opcheck(torch.ops.tinydiffusion.winograd_conv2d, tuple(leaves), **loose)


def test_its_flops_are_those_of_the_convolution():
    leaves = [leaf.requires_grad_() for leaf in inputs(2, 3, 5, 4, 8)]
    counts = []
    for convolution in (winograd_conv2d, convolved):
        with FlopCounterMode(display=False, custom_mapping=winograd.FLOPS) as counter:
            convolution(*leaves).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("size", [(6, 8), (8, 7), (2, 4)])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match="multiples of 4, got"):
        winograd_conv2d(*inputs(1, 2, 2, *size))


# ---- where it is used ------------------------------------------------------------------------


@pytest.fixture
def no_amx(monkeypatch):
    monkeypatch.setattr(winograd, "HAS_AMX", False)


@pytest.mark.usefixtures("no_amx")
def test_it_pays_in_wide_layers_on_a_cpu():
    assert pays(WIDE, 256, torch.bfloat16, CPU)
    assert pays(WIDE, 256, torch.float32, CPU)


@pytest.mark.usefixtures("no_amx")
@pytest.mark.parametrize(
    ("shape", "out_channels", "dtype", "device"),
    [
        ((32, 96, 16, 16), 256, torch.float32, "cpu"),
        (WIDE, 96, torch.float32, "cpu"),
        ((32, 256, 18, 16), 256, torch.float32, "cpu"),
        ((32, 256, 16, 18), 256, torch.float32, "cpu"),
        ((1, 256, 16, 16), 256, torch.float32, "cpu"),
        (WIDE, 256, torch.float16, "cpu"),
        (WIDE, 256, torch.float32, "cuda"),
        (WIDE, 256, torch.float32, "meta"),
    ],
)
def test_it_does_not_pay_elsewhere(shape, out_channels, dtype, device):
    assert not pays(shape, out_channels, dtype, torch.device(device))


def test_amx_is_faster_in_bfloat16_and_unknown_in_float32(monkeypatch):
    monkeypatch.setattr(winograd, "HAS_AMX", True)
    assert not pays(WIDE, 256, torch.bfloat16, CPU)
    assert pays(WIDE, 256, torch.float32, CPU)


@pytest.mark.usefixtures("no_amx")
@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_layer_is_a_convolution_with_the_same_parameters(monkeypatch, bfloat16):
    torch.manual_seed(0)
    layer, usual = Conv3x3(192, 192), nn.Conv2d(192, 192, 3, padding=1)
    usual.load_state_dict(layer.state_dict())
    x = torch.randn(4, 192, 32, 32)
    calls = []
    monkeypatch.setattr(
        winograd, "winograd_conv2d", lambda *given: calls.append(given) or winograd_conv2d(*given)
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        mine, theirs = layer(x), usual(x)
    assert len(calls) == 1
    assert mine.dtype == theirs.dtype == calls[0][0].dtype
    assert calls[0][1].dtype == torch.float32
    assert relative_error(mine, usual.double()(x.double())) < (0.018 if bfloat16 else 3e-6)


@pytest.mark.usefixtures("no_amx")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_wide_unet_has_the_same_gradients_either_way(monkeypatch, text_inputs, checkpointing):
    torch.manual_seed(0)
    network = text_inputs.without_zeros(
        UNet(
            text_dim=24, pooled_dim=16, channels=(192,), layers_per_block=1, attention_levels=(),
            time_embedding_dim=32, patch_size=1, gradient_checkpointing=checkpointing,
        )
    )  # fmt: skip
    sample, timesteps, (states, mask, pooled, _) = text_inputs(16, 24, 16, 6)
    found = []
    used = winograd.winograd_conv2d
    calls = []
    monkeypatch.setattr(
        winograd, "winograd_conv2d", lambda *given: calls.append(given) or used(*given)
    )
    for is_used in (True, False):
        if not is_used:
            monkeypatch.setattr(winograd, "pays", lambda *_: False)
        network.zero_grad()
        output = network(sample, timesteps, TextStates(states, mask, pooled))
        output.square().mean().backward()
        found.append(
            {"output": output.detach(), **{n: p.grad for n, p in network.named_parameters()}}
        )
    assert len(calls) >= 6
    mine, direct = found
    for name, value in direct.items():
        if value is not None and value.norm() > 1e-6:
            assert relative_error(mine[name], value.double()) < 1e-4, name
