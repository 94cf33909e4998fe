"""Proves what every network promises: shape, conditioning, independent rows, rebuilding."""

import copy
import inspect

import pytest
import torch

from tinydiffusion import registry
from tinydiffusion.protocols import Network, TextStates

NAMES = registry.names("network")
OPTIONS = {"unet": {"channels": (32, 32), "layers_per_block": 1}}
TEXT_DIM, POOLED_DIM, LENGTH = 24, 16, 6


def make(name, in_channels=3, seed=0):
    """The network of this name, small; one that is not listed above is made with its defaults."""
    torch.manual_seed(seed)
    return registry.create(
        "network",
        name,
        text_dim=TEXT_DIM,
        pooled_dim=POOLED_DIM,
        in_channels=in_channels,
        **OPTIONS.get(name, {}),
    )


@pytest.fixture(params=NAMES)
def network(request, text_inputs):
    """Without a zero among the weights, so that everything that is connected shows."""
    network = make(request.param).eval()
    return text_inputs.without_zeros(network)


@pytest.fixture
def inputs(text_inputs):
    return text_inputs(3, TEXT_DIM, POOLED_DIM, LENGTH)


@pytest.mark.parametrize("name", NAMES)
def test_takes_keyword_arguments_alone_and_what_build_gives(name):
    parameters = inspect.signature(registry.load("network", name)).parameters
    assert {p.kind for p in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert {"text_dim", "pooled_dim", "in_channels"} <= parameters.keys()


def test_shape_dtype_and_finite(network, inputs):
    sample, timesteps, text = inputs
    output = network(sample, timesteps, text)
    assert isinstance(network, Network)
    assert output.shape == sample.shape
    assert output.dtype == torch.float32
    assert output.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_colour_channels(name, channels, text_inputs):
    sample, timesteps, text = text_inputs(2, TEXT_DIM, POOLED_DIM, LENGTH, shape=(channels, 16, 16))
    assert make(name, in_channels=channels)(sample, timesteps, text).shape == sample.shape


def test_same_input_same_output(network, inputs):
    assert torch.equal(network(*inputs), network(*inputs))


def test_picture_timestep_and_both_texts_matter(network, inputs):
    sample, timesteps, text = inputs
    output = network(*inputs)
    others = {
        "picture": network(sample.flip(-1), timesteps, text),
        "timestep": network(sample, timesteps + 100, text),
        "pooled": network(sample, timesteps, text._replace(pooled=-text.pooled)),
        "tokens": network(
            sample, timesteps, text._replace(encoder_hidden_states=-text.encoder_hidden_states)
        ),
        "mask": network(sample, timesteps, text._replace(mask=torch.ones_like(text.mask))),
    }
    for name, other in others.items():
        assert (other - output).abs().amax() > 1e-3 * output.std(), name


def test_masked_tokens_have_no_influence(network, inputs):
    sample, timesteps, text = inputs
    assert not text.mask.all()
    states = text.encoder_hidden_states
    elsewhere = torch.where(text.mask[..., None], states, 100 * torch.randn_like(states))
    other = text._replace(encoder_hidden_states=elsewhere)
    assert torch.equal(network(sample, timesteps, other), network(*inputs))


def test_rows_do_not_see_each_other(network, inputs):
    sample, timesteps, (states, mask, pooled, _) = inputs
    leaves = [x.clone().requires_grad_() for x in (sample, timesteps, states, pooled)]
    output = network(leaves[0], leaves[1], TextStates(leaves[2], mask, leaves[3]))
    gradients = torch.autograd.grad(output[1].square().sum(), leaves)
    for gradient in gradients:
        assert gradient[1].any()
        assert not gradient[[0, 2]].any()


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_all_of_its_state(name, inputs):
    """What save_pretrained writes rebuilds the network."""
    trained, fresh = make(name).eval(), make(name, seed=1).eval()
    fresh.load_state_dict(copy.deepcopy(trained.state_dict()))
    assert torch.equal(fresh(*inputs), trained(*inputs))
