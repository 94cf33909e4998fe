"""Proves that gradient checkpointing changes no gradient by a bit, and takes less memory."""

import pytest
import torch

from tinydiffusion.networks.unet import UNet
from tinydiffusion.protocols import TextStates
from tinydiffusion.runtime.live_bytes import LiveBytes

SMALL = {"channels": (32, 64), "layers_per_block": 2, "attention_levels": (0, 1), "patch_size": 1}


def make(text_inputs, checkpointing, dropout=0.0):
    torch.manual_seed(0)
    network = UNet(
        text_dim=24, pooled_dim=16, dropout=dropout, gradient_checkpointing=checkpointing, **SMALL
    )
    return text_inputs.without_zeros(network)


def gradients(network, text_inputs, *, bfloat16=False):
    """The output, and the gradients of all parameters, of the picture and of the text."""
    sample, timesteps, (states, mask, pooled, _) = text_inputs(3, 24, 16, 6)
    leaves = [x.clone().requires_grad_() for x in (sample, states, pooled)]
    torch.manual_seed(5)  # of the dropout
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        output = network(leaves[0], timesteps, TextStates(leaves[1], mask, leaves[2]))
    output.float().square().mean().backward()
    named = {name: p.grad for name, p in network.named_parameters()}
    return {"output": output.detach(), "picture": leaves[0].grad, "states": leaves[1].grad,
            "pooled": leaves[2].grad, **named}  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"bfloat16": True}], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_every_gradient_is_the_same_to_the_bit(text_inputs, dropout, options):
    usual, checkpointed = (
        gradients(make(text_inputs, checkpointing, dropout), text_inputs, **options)
        for checkpointing in (False, True)
    )
    assert usual.keys() == checkpointed.keys()
    for name, gradient in usual.items():
        assert gradient.any(), name
        torch.testing.assert_close(checkpointed[name], gradient, rtol=0, atol=0, msg=name)


def test_at_most_two_thirds_of_the_activations_are_held(text_inputs):
    peaks = {}
    for checkpointing in (False, True):
        network = make(text_inputs, checkpointing)
        live = LiveBytes(torch.device("cpu"))
        with live:
            gradients(network, text_inputs)
        peaks[checkpointing] = live.peak(without=[p.grad for p in network.parameters()])
    assert peaks[True] < peaks[False] * 2 / 3


def test_without_gradients_nothing_is_computed_differently(text_inputs):
    inputs = text_inputs(3, 24, 16, 6)
    with torch.no_grad():
        usual, checkpointed = (make(text_inputs, each)(*inputs) for each in (False, True))
    assert torch.equal(usual, checkpointed)
