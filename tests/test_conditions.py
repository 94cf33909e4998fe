"""Proves that conditions are taken apart and put together as a whole, hint included."""

import pytest
import torch

from tinydiffusion.protocols import TextStates


def conditions(count, first=0, hint=True):
    numbers = torch.arange(first, first + count, dtype=torch.float32)
    return TextStates(
        numbers[:, None, None].expand(-1, 4, 3),
        torch.ones(count, 4, dtype=torch.bool),
        numbers[:, None].expand(-1, 5),
        numbers[:, None, None, None].expand(-1, 1, 2, 2) if hint else None,
    )


def numbers_of(text):
    parts = [text.encoder_hidden_states[:, 0, 0], text.pooled[:, 0]]
    parts += [] if text.hint is None else [text.hint[:, 0, 0, 0]]
    assert all(torch.equal(part, parts[0]) for part in parts)
    return parts[0].tolist()


@pytest.mark.parametrize("hint", [False, True])
@pytest.mark.parametrize("rows", [slice(1, 3), [1, 2], torch.tensor([1, 2])])
def test_rows(hint, rows):
    some = conditions(4, hint=hint).rows(rows)
    assert numbers_of(some) == [1.0, 2.0]
    assert len(some.mask) == 2
    assert (some.hint is not None) == hint


@pytest.mark.parametrize("hint", [False, True])
def test_cat_undoes_split(hint):
    whole = conditions(5, hint=hint)
    pieces = whole.split(2)
    assert [numbers_of(piece) for piece in pieces] == [[0.0, 1.0], [2.0, 3.0], [4.0]]
    assert numbers_of(TextStates.cat(pieces)) == numbers_of(whole)


def test_both_halves_of_guidance_keep_their_hints():
    both = TextStates.cat([conditions(2), conditions(2, first=7)])
    assert both.hint[:, 0, 0, 0].tolist() == [0.0, 1.0, 7.0, 8.0]


def test_some_with_a_hint_and_some_without_are_refused():
    with pytest.raises(ValueError, match="1 of 2 conditions have a hint"):
        TextStates.cat([conditions(1), conditions(1, hint=False)])


def test_map_reaches_every_part():
    assert numbers_of(conditions(3).map(lambda part: part[:1])) == [0.0]
    assert conditions(3, hint=False).map(torch.Tensor.detach).hint is None
