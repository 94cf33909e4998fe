"""Proves what every text encoder promises: constant L, independent rows, rebuilding."""

import copy
import json

import pytest
import torch

from tinydiffusion import registry

CAPTIONS = ["a red circle above a blue square", "two green stars", "", "a dog 🙂 שלום", "x " * 200]


def make(name: str, open_clip_folder):
    """The encoder of this name, small; one that is not listed here is made with its defaults."""
    torch.manual_seed(0)
    options = {
        "clip": {"width": 32, "layers": 2, "heads": 2},
        "open_clip": {"model": f"local-dir:{open_clip_folder}"},
    }
    return registry.load("text_encoder", name).from_captions(CAPTIONS, **options.get(name, {}))


@pytest.fixture(params=registry.names("text_encoder"))
def encoder(request, open_clip_folder):
    return make(request.param, open_clip_folder)


def assert_same(ours, others):
    for our, other in zip(ours[:3], others[:3], strict=True):
        torch.testing.assert_close(our, other, atol=1e-6, rtol=1e-6)


def test_shapes_are_the_announced_ones(encoder):
    states = encoder.encode(CAPTIONS)
    assert states.encoder_hidden_states.shape == (5, encoder.max_length, encoder.hidden_size)
    assert states.mask.shape == (5, encoder.max_length)
    assert states.mask.dtype == torch.bool
    assert states.pooled.shape == (5, encoder.pooled_size)


def test_length_is_the_same_for_any_captions(encoder):
    for captions in ([""], ["x " * 200], CAPTIONS, []):
        states = encoder.encode(captions)
        assert states.encoder_hidden_states.shape[:2] == (len(captions), encoder.max_length)
        assert encoder.tokenize(captions).ids.shape == (len(captions), encoder.max_length)


def test_row_does_not_depend_on_its_batch(encoder):
    alone = copy.deepcopy(encoder)  # so that nothing is remembered from the batch
    batch = encoder.encode(CAPTIONS)
    for i, caption in enumerate(CAPTIONS):
        assert_same(batch.rows([i]), alone.encode([caption]))


def test_encode_is_tokenize_and_forward(encoder):
    tokens = encoder.tokenize(CAPTIONS)
    assert tokens.num_truncated == 1
    assert_same(encoder.encode(CAPTIONS), encoder(tokens))


def test_order_and_repeats_are_kept(encoder):
    states = encoder.encode(CAPTIONS)
    mixed = encoder.encode([CAPTIONS[1], CAPTIONS[0], CAPTIONS[1]])
    assert_same(mixed, states.rows([1, 0, 1]))


def test_config_and_state_dict_rebuild_it(encoder):
    config = json.loads(json.dumps(encoder.config()))
    rebuilt = type(encoder)(**config)
    rebuilt.encode(CAPTIONS)  # what it remembers of other weights must not survive
    rebuilt.load_state_dict(encoder.state_dict())
    assert rebuilt.config() == encoder.config()
    assert_same(rebuilt.encode(CAPTIONS), encoder.encode(CAPTIONS))


def test_frozen_ones_have_nothing_to_train_and_others_have(encoder):
    assert any(p.requires_grad for p in encoder.parameters()) != encoder.frozen
    assert encoder.encode(CAPTIONS).pooled.requires_grad != encoder.frozen


def test_a_string_in_place_of_a_list_is_refused(encoder):
    for method in (encoder.tokenize, encoder.encode):
        with pytest.raises(ValueError, match="list of strings"):
            method("a red circle")
