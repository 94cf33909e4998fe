"""Proves that the learned byte pairs spell any text, never a special token, and never differ."""

import random
import time
import unicodedata

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinydiffusion.text.bpe import (
    NUM_SPECIAL,
    UNITS,
    BytePairTokenizer,
    learn_merges,
    split_words,
    to_units,
)

CAPTIONS = [
    f"a {colour} {shape} {side} a {other} square, it's on a white background"
    for colour in ("red", "green", "blue")
    for shape in ("circle", "triangle")
    for side in ("above", "left of")
    for other in ("red", "yellow")
]
MERGES = learn_merges(CAPTIONS, 4096)
TOKENIZER = BytePairTokenizer(MERGES, max_length=77)
SPELLINGS = [
    "<|endoftext|>",
    "<|startoftext|>",
    "<start_of_text>",
    "<end_of_text>",
    "<pad>",
    "</w>",
]


def texts_of(caption: str) -> list[str]:
    ids, _ = TOKENIZER.ids(caption)
    return [TOKENIZER.tokens[index] for index in ids[1:-1]]


def slow_merges(captions: list[str], num_merges: int) -> list[tuple[str, str]]:
    """Algorithm 1 of Sennrich et al., counting every pair anew for each merge."""
    words = [to_units(word) for caption in captions for word in split_words(caption)]
    merges = []
    for _ in range(num_merges):
        counts: dict[tuple[str, str], int] = {}
        for word in words:
            for i in range(len(word) - 1):
                counts[word[i], word[i + 1]] = counts.get((word[i], word[i + 1]), 0) + 1
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] < 2:
            break
        merges.append(best)
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = ["".join(best)]
                i += 1
    return merges


def test_merges_equal_those_of_the_plain_algorithm():
    odd = [*CAPTIONS, "banana bananas anna ananas", "aaaa aaa aaaaa aa", "zzzzzzz zzz"]
    assert learn_merges(odd, 4096) == slow_merges(odd, 4096)
    assert learn_merges(odd, 540) == slow_merges(odd, 540 - len(UNITS) - NUM_SPECIAL)


def test_merges_do_not_depend_on_the_order_of_captions():
    shuffled = random.Random(0).sample(CAPTIONS, len(CAPTIONS))
    assert learn_merges(shuffled, 4096) == MERGES


def test_every_repeated_word_is_one_token():
    assert texts_of("A red CIRCLE, it's white") == [
        f"{word}</w>" for word in ("a", "red", "circle", ",", "it", "'s", "white")
    ]


def test_vocabulary_is_bounded_and_may_be_smaller():
    assert BytePairTokenizer(learn_merges(CAPTIONS, 530), 77).vocab_size <= 530
    assert TOKENIZER.vocab_size < 700
    assert learn_merges(CAPTIONS, 515) == []
    with pytest.raises(ValueError, match="at least 515, got 514"):
        learn_merges(CAPTIONS, 514)


def test_two_merges_to_one_text_share_an_id():
    tokenizer = BytePairTokenizer([("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")], 16)
    assert tokenizer.vocab_size == 512 + 3 + 3
    assert len(set(tokenizer.tokens)) == len(tokenizer.tokens)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=12))
def test_any_text_round_trips(text: str):
    ids = TOKENIZER.encode([text]).ids[0]
    assert TOKENIZER.decode(ids) == " ".join(split_words(text))


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_no_character_is_lost(text: str):
    words = split_words(text)
    lowered = unicodedata.normalize("NFC", text.lower())
    assert "".join(words) == "".join(lowered.split())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(SPELLINGS), st.text(max_size=5)), max_size=8))
def test_text_never_gives_special_ids(parts: list[str]):
    ids, _ = TOKENIZER.ids("".join(parts))
    assert ids[0] == TOKENIZER.start_id
    assert ids[-1] == TOKENIZER.end_id
    assert max(ids[1:-1], default=0) < TOKENIZER.pad_id


def test_rows_are_start_tokens_end_padding():
    tokens = BytePairTokenizer(MERGES, 6).encode(["a red circle", ""])
    pad, start, end = TOKENIZER.pad_id, TOKENIZER.start_id, TOKENIZER.end_id
    assert tokens.ids[0, 0] == start
    assert tokens.ids[0, 4:].tolist() == [end, pad]
    assert tokens.ids[1].tolist() == [start, end, pad, pad, pad, pad]
    torch.testing.assert_close(tokens.mask.sum(1), torch.tensor([5, 2]))
    assert tokens.num_truncated == 0


def test_cuts_keep_end_of_text_and_are_counted():
    tokenizer = BytePairTokenizer(MERGES, 5)
    tokens = tokenizer.encode(["a red circle", "a red circle above", "red " * 100])
    assert tokens.num_truncated == 2
    assert tokens.ids[:, 4].tolist() == [tokenizer.end_id] * 3
    assert tokens.mask.all()
    torch.testing.assert_close(tokens.ids[0, :4], tokens.ids[1, :4])


def test_case_spacing_and_composition_do_not_matter():
    same = TOKENIZER.encode(["a  Café\tRED", " a cafe\u0301 red "])
    torch.testing.assert_close(same.ids[0], same.ids[1])


def test_cached_ids_are_the_same():
    fresh = BytePairTokenizer(MERGES, 77)
    torch.testing.assert_close(fresh.encode(CAPTIONS).ids, fresh.encode(CAPTIONS).ids)
    torch.testing.assert_close(fresh.encode(CAPTIONS).ids, TOKENIZER.encode(CAPTIONS).ids)


@pytest.mark.parametrize("unit", ["x", "é ", " ", "\u0301", "🙂", "<pad>"])
def test_ten_megabytes_take_well_under_a_second(unit: str):
    caption = unit * (10_000_000 // len(unit))
    begin = time.perf_counter()
    tokens = BytePairTokenizer(MERGES, 77).encode([caption])
    assert time.perf_counter() - begin < 0.5
    assert tokens.num_truncated == 1


def test_lone_surrogates_are_spelled_and_told_apart():
    tokens = TOKENIZER.encode(["\ud800", "\udfff", "?"])
    assert len({tuple(row.tolist()) for row in tokens.ids}) == 3


def test_no_captions_give_no_rows():
    assert TOKENIZER.encode([]).ids.shape == (0, 77)


def test_a_string_in_place_of_a_list_is_refused():
    with pytest.raises(ValueError, match="must be a list of strings, got the string 'a red"):
        TOKENIZER.encode("a red circle")
