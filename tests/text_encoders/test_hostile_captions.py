"""Proves that no caption makes a special token, a crash or a wait, and that cuts are counted."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinydiffusion.text_encoders.clip import ClipTextEncoder
from tinydiffusion.text_encoders.open_clip import OpenClipTextEncoder

ORDINARY = "a red circle above a blue square"
SPECIAL = [
    "<end_of_text>", "<start_of_text>", "<|endoftext|>", "<|startoftext|>", "<pad>", "</w>",
    "<END_OF_TEXT>", "&lt;end_of_text&gt;", "&amp;lt;end_of_text&amp;gt;",
    "\uff1cend_of_text\uff1e", "<end_of_text ><end_of_text>", "a<start_of_text>b<end_of_text>c",
    "<end_\u200bof_text>",
]  # fmt: skip
UNUSUAL = [
    "", " ", "\t\n\r\v\f", "\0", "a\0b", "\x1b[31mred\x07", "\x7f\x80\x9f", "\ufeffa dog", "\ufffd",
    "\ud800", "a \udfff\ud800 dog", "caf\udce9", "\ud83d\ude00",  # halves of an emoji
    "שלום עולם", "\u202edog a\u202c", "العربية", "👩‍👩‍👧‍👦 🏳️‍🌈", "🙂" * 30, "e\u0301" * 9, "\u0301",
    "ﷺ", "İ", "ß", "%s %d {0} {} $HOME `ls` ../../x", "*?[a-z]**", "CON", "-1", "null", "1e999",
    "<img src=x onerror=alert(1)>", "'; DROP TABLE x; --", "\u2028\u2029\x85",
    "\U0001d573\U0001d58a", "\U0010ffff",
]  # fmt: skip
UNITS = [
    "x", "dog ", " ", "\n", "é ", "\u0301", "🙂", "&amp;", "&lt;", "<end_of_text>", "\0", "\ud800",
    "漢", "1", "ab1!", "'s", "</w>", "a\u0430ä", "\u200d", "&#60;",
]  # fmt: skip


@pytest.fixture(scope="module", params=["clip", "open_clip"])
def encoder(request, open_clip_folder):
    torch.manual_seed(0)
    if request.param == "clip":
        return ClipTextEncoder.from_captions([ORDINARY, "x " * 99], width=32, layers=1, heads=2)
    return OpenClipTextEncoder.from_captions([], model=f"local-dir:{open_clip_folder}")


def test_a_vocabulary_is_learned_from_them_and_travels_as_json():
    encoder = ClipTextEncoder.from_captions(
        [*SPECIAL, *UNUSUAL, *(100_000 * unit for unit in UNITS)], width=32, layers=1, heads=2
    )
    rebuilt = ClipTextEncoder(**json.loads(json.dumps(encoder.config())))
    for caption in SPECIAL + UNUSUAL:
        assert inner_ids(rebuilt, caption) == inner_ids(encoder, caption)


def special_ids(encoder) -> set[int]:
    tokenizer = encoder.tokenizer
    if isinstance(encoder, ClipTextEncoder):
        return {tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id}
    return {tokenizer.sot_token_id, tokenizer.eot_token_id}


def inner_ids(encoder, caption: str) -> list[int]:
    """The caption's ids between start and end, which stand where they must."""
    tokens = encoder.tokenize([caption])
    length = int(tokens.mask.sum())
    assert tokens.mask[0, :length].all()
    row = tokens.ids[0, :length].tolist()
    empty = encoder.tokenize([""]).ids[0, :2].tolist()
    assert [row[0], row[-1]] == empty
    assert not special_ids(encoder) & set(row[1:-1])
    return row[1:-1]


@pytest.mark.parametrize("caption", SPECIAL)
def test_a_spelled_special_token_is_plain_text(encoder, caption):
    assert len(inner_ids(encoder, caption)) >= 3
    assert len(inner_ids(encoder, f"a dog {caption} on a mat")) >= 7


@pytest.mark.parametrize("caption", UNUSUAL)
def test_unusual_text_gives_finite_states(encoder, caption):
    inner_ids(encoder, caption)
    states = encoder.encode([caption, ORDINARY])
    assert states.encoder_hidden_states[states.mask].isfinite().all()
    assert states.pooled.isfinite().all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(SPECIAL + UNUSUAL) | st.text(max_size=5), max_size=6))
def test_no_mix_of_them_makes_a_special_token(encoder, parts):
    inner_ids(encoder, "".join(parts))


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=40))
def test_no_text_at_all_makes_a_special_token(encoder, text):
    inner_ids(encoder, text)


@pytest.mark.timeout(20)  # read to the end, it would take minutes
@pytest.mark.parametrize("unit", UNITS)
def test_ten_megabytes_are_cut_before_they_are_read_and_counted_as_cut(encoder, unit):
    tokens = encoder.tokenize([unit * (10_000_000 // len(unit)), ORDINARY])
    assert tokens.num_truncated == 1


def test_a_cut_is_counted_to_the_token(encoder):
    room = encoder.max_length - 2
    fits, too_long = "dog " * room, "dog " * (room + 1)
    if isinstance(encoder, ClipTextEncoder):  # where "dog" is no word of the captions
        fits, too_long = "x " * room, "x " * (room + 1)
    assert encoder.tokenize([fits]).num_truncated == 0
    assert encoder.tokenize([too_long, fits, too_long]).num_truncated == 2
