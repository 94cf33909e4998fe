"""Chance equals enumeration; its range knows hubs, repeated captions and unevenly asked prompts."""

from itertools import combinations, permutations

import pytest
import torch

from tinydiffusion.metrics.recall import (
    MAX_RANK,
    Candidates,
    Found,
    chance_of,
    recall_rows,
    shuffled_range,
)


def found_first(nearest):
    """Pictures of which each finds one prompt, at once."""
    nearest = torch.tensor(nearest)
    return Found(torch.arange(len(nearest)), nearest, torch.zeros_like(nearest))


def rows(prompts, nearest, candidates):
    prompts = torch.tensor(prompts)
    return recall_rows("r", range(len(prompts)), prompts, found_first(nearest), candidates)


@pytest.mark.parametrize("k", [1, 2, 5, 7, 9])
@pytest.mark.parametrize("right", [[1], [3], [7], [1, 3, 3, 6]])
def test_chance_is_the_share_of_draws_that_hold_a_right_candidate(right, k):
    draws = list(combinations(range(7), min(k, 7)))
    shares = [sum(min(draw) < m for draw in draws) / len(draws) for m in right]
    chance = chance_of(Candidates(7, torch.tensor(right)), k)
    assert chance == pytest.approx(sum(shares) / len(shares), abs=1e-12)


@pytest.mark.parametrize("k", [1, 5])
def test_chance_of_different_captions_is_k_of_n(k):
    assert chance_of(Candidates(1397, torch.ones(8).long()), k) == pytest.approx(k / 1397)


@pytest.mark.parametrize(
    ("prompts", "nearest"),
    [
        ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),  # all right
        ([0, 1, 2, 3, 4, 5], [3, 3, 3, 3, 3, 1]),  # a hub
        ([0, 0, 0, 0, 1, 2], [0, 0, 0, 1, 1, 2]),  # prompts asked unevenly
        ([0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 2]),  # one prompt
    ],
)
def test_range_of_shuffled_prompts_is_that_of_all_orders(prompts, nearest):
    orders = permutations(prompts)
    recalls = sorted(sum(map(int.__eq__, order, nearest)) / 6 for order in orders)
    expected = recalls[round(0.025 * 720)], recalls[-round(0.025 * 720)]
    assert shuffled_range(found_first(nearest), torch.tensor(prompts)) == expected


def test_a_hub_of_the_commonest_prompt_is_not_above_chance():
    """Nine of ten pictures are asked for prompt 0, and every picture looks like it."""
    row = rows([0] * 90 + [1] * 10, [0] * 100, Candidates(200, torch.full((100,), 100)))[0]
    assert (row.value, row.details["chance"]) == (0.9, 0.5)
    assert row.details["chance_interval"] == (0.9, 0.9)
    assert row.details["above_chance"] is False
    assert row.ci95[0] == 0.5 < 0.9 < row.ci95[1]
    assert row.warnings == [
        "r@1 is not above chance, 0.5: with shuffled prompts the same pictures reach 0.9 to 0.9"
    ]


def test_right_pictures_are_above_chance_by_wilson():
    row = rows([0] * 50 + [1] * 50, [0] * 50 + [1] * 50, Candidates(200, torch.full((100,), 100)))[
        0
    ]
    assert row.value == 1
    assert row.details["above_chance"] is True
    assert row.ci95[0] == pytest.approx(0.963, abs=1e-3)
    assert row.details["chance_interval"][1] < 0.7
    assert row.warnings == []


def test_a_value_below_chance_is_said_not_to_be_above():
    row = rows([0] * 50 + [1] * 50, [1] * 50 + [0] * 50, Candidates(200, torch.full((100,), 100)))[
        0
    ]
    assert row.value == 0
    assert row.ci95[1] < row.details["chance_interval"][0]
    assert row.warnings[0].startswith("r@1 is not above chance")


@pytest.mark.parametrize(
    ("candidates", "reason"),
    [
        (Candidates(9, torch.full((4,), 9)), "all 9 candidates have the picture's own prompt"),
        (Candidates(MAX_RANK, torch.ones(4).long()), "at most 4 of 5 candidates are wrong"),
    ],
)
def test_a_chance_of_one_says_nothing(candidates, reason):
    row = rows([0, 1, 2, 3], [0, 1, 2, 3], candidates)[1]
    assert row.details["chance"] == 1
    assert row.details["above_chance"] is False
    assert row.ci95[1] == 1
    assert len(row.warnings) == 1
    assert row.warnings[0].startswith("r@5 says nothing")
    assert reason in row.warnings[0]


def test_few_pictures_cannot_be_above_chance():
    """Of three pictures one order in six has all of them right."""
    row = rows([0, 1, 2], [0, 1, 2], Candidates(1000, torch.ones(3).long()))[0]
    assert row.value == 1
    assert row.ci95 == (pytest.approx(0.001), 1)
    assert not row.details["above_chance"]
