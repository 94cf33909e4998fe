"""Rows come back in id order and whole, texts included, and an id is taken once."""

import pytest
import torch

from tinydiffusion.metrics.table import Table


def table():
    return Table("generated", tensors=("value",), texts=("prompt",))


def test_state_round_trip_keeps_rows_sorted_and_text_exact():
    first = table()
    texts = ["ein rötliches Quadrat", "", "三つの円"]
    first.add(torch.tensor([7, 2, 5]), {"value": torch.eye(3), "prompt": texts})
    second = table()
    second.load_state(first.state())
    assert second.ids() == [2, 5, 7]
    assert second.text("prompt") == ["", "三つの円", "ein rötliches Quadrat"]
    torch.testing.assert_close(second.tensor("value"), torch.eye(3)[[1, 2, 0]])


def test_an_empty_part_merges_with_a_full_one(merge):
    full, other = table(), table()
    full.add(torch.tensor([1]), {"value": torch.ones(1, 4), "prompt": ["one"]})
    other.load_state(merge(table().state(), full.state()))
    assert other.text("prompt") == ["one"]
    torch.testing.assert_close(other.tensor("value"), torch.ones(1, 4))


def test_an_id_given_twice_is_refused(merge):
    rows = {"value": torch.zeros(1), "prompt": ["a"]}
    one = table()
    one.add(torch.tensor([3]), rows)
    with pytest.raises(ValueError, match="generated picture 3 was given twice"):
        one.add(torch.tensor([3]), rows)
    with pytest.raises(ValueError, match="picture 3 was given twice"):
        table().load_state(merge(one.state(), one.state()))
