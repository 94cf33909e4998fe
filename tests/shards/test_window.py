"""The bounded shuffle shows each picture once per epoch, in bounds, and mixes evenly."""

import pickle

import pytest
import torch

from tinydiffusion.shards.order import BoundedShuffle

COUNTS = [100, 0, 37, 250, 1, 112]
PICTURES = {(shard, member) for shard, count in enumerate(COUNTS) for member in range(count)}


def epoch(shuffle: BoundedShuffle, order_seed: int) -> list[tuple[int, int]]:
    return [shuffle.locate(order_seed, place) for place in range(len(shuffle))]


@pytest.mark.parametrize("window", [1, 7, 100, 499, 500, 10_000])
def test_every_picture_comes_once(window: int) -> None:
    order = epoch(BoundedShuffle(COUNTS, window), 3)
    assert len(order) == len(PICTURES)
    assert set(order) == PICTURES


def test_is_a_function_of_seed_and_place_alone() -> None:
    order = epoch(BoundedShuffle(COUNTS, 60), 5)
    other = BoundedShuffle(COUNTS, 60)
    for place in torch.randperm(len(other), generator=torch.manual_seed(0)).tolist():
        other.locate(6, place)  # asked for another epoch in between
        assert other.locate(5, place) == order[place]
    assert epoch(pickle.loads(pickle.dumps(other)), 5) == order


def test_epochs_differ_in_shards_and_within_them() -> None:
    shuffle = BoundedShuffle([20] * 30, 60)
    first, second = epoch(shuffle, 1), epoch(shuffle, 2)
    assert first != second
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10
    assert {shard for shard, _ in first[:60]} != {shard for shard, _ in second[:60]}


def test_a_window_holds_few_shards_and_a_shard_few_windows() -> None:
    order = epoch(BoundedShuffle([10] * 100, 45), 0)
    windows = [order[first : first + 45] for first in range(0, len(order), 45)]
    assert all(len({shard for shard, _ in window}) <= 6 for window in windows)
    for shard in range(100):
        touching = [number for number, w in enumerate(windows) if any(s == shard for s, _ in w)]
        assert touching[-1] - touching[0] <= 1


def test_within_a_window_any_picture_comes_anywhere() -> None:
    shuffle = BoundedShuffle([50] * 4, 100)
    sums = torch.zeros(200)
    for seed in range(400):
        for place, (shard, member) in enumerate(epoch(shuffle, seed)):
            sums[shard * 50 + member] += place
    # Uniform on [0, 200): mean 99.5, deviation 57.7 / sqrt(400) = 2.9.
    assert (sums / 400 - 99.5).abs().max() < 5 * 2.9


def test_needs_no_list_of_all_pictures() -> None:
    shuffle = BoundedShuffle([10**9] * 1000, 5000)
    shard, member = shuffle.locate(0, 777_777_777_777)
    assert 0 <= shard < 1000
    assert 0 <= member < 10**9


@pytest.mark.parametrize("place", [-1, 500])
def test_places_outside_are_refused(place: int) -> None:
    with pytest.raises(IndexError, match=r"not in \[0, 500\)"):
        BoundedShuffle(COUNTS, 7).locate(0, place)


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BoundedShuffle(COUNTS, 0)
