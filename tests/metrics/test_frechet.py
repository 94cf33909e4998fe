"""Fréchet distance of two sets: invariances, both forms, floor, interval, bad input, memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tinydiffusion.metrics.features import Shared
from tinydiffusion.metrics.frechet import FrechetEvaluator
from tinydiffusion.metrics.statistics import (
    Moments,
    frechet_distance,
    frechet_distance_of_features,
    student_quantile,
)

DIMENSIONS = 12


class Corner:
    """Red, green and blue of the first four pixels."""

    dimensions = DIMENSIONS

    def __call__(self, images):
        return images[:, :, 0, :4].flatten(1).float() / 16

    def spec(self):
        return {"name": "corner", "weights_sha256": None, "verified": True, "layer": None}


def evaluator():
    return FrechetEvaluator("fd", Shared(Corner()))


def pictures(n, seed, low=0, high=256):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (n, 3, 4, 4), dtype=torch.uint8, generator=generator)


def feed(evaluator, batch, order, size, **sets):
    for source, images in sets.items():
        ids = torch.arange(len(images)) if order is None else order[order < len(images)]
        for some in ids.split(size):
            evaluator.update(batch(source, images[some], ids=some))
    return evaluator


def score(batch, generated, reference, *, order=None, size=7):
    fed = feed(evaluator(), batch, order, size, generated=generated, reference=reference)
    return fed.compute()[0]


N = pytest.mark.parametrize("n", [10, 60])  # fewer pictures than features, and more


@N
def test_a_set_with_itself_is_at_no_distance(batch, n):
    assert 0 <= score(batch, pictures(n, 0), pictures(n, 0)).value < 1e-3


@N
def test_distance_is_symmetric(batch, n):
    a, b = pictures(n, 0), pictures(n + 5, 1, high=200)
    there, back = score(batch, a, b).value, score(batch, b, a).value
    assert there > 1
    assert there == pytest.approx(back, rel=1e-9)


@N
def test_neither_order_nor_batches_matter(batch, n):
    a, b = pictures(n, 0), pictures(n, 1, high=200)
    whole = score(batch, a, b, size=n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    for size in (1, 5):
        other = score(batch, a, b, order=order, size=size)
        assert other.value == pytest.approx(whole.value, rel=1e-9)
        assert other.ci95 == pytest.approx(whole.ci95, rel=1e-6)
        assert other.details["floor"] == pytest.approx(whole.details["floor"], rel=1e-9)


@pytest.mark.parametrize("n", [10, 30, 90])  # each part few and the whole many, at 30
def test_three_processes_give_the_answer_of_one(batch, merge, n):
    sets = {"generated": pictures(n, 0), "reference": pictures(n, 1, high=200)}
    whole = feed(evaluator(), batch, None, 7, **sets)
    parts = [
        feed(evaluator(), batch, torch.arange(n)[rank::3], 4 + rank, **sets) for rank in range(3)
    ]
    merged = evaluator()
    merged.load_state(merge(*(part.state() for part in parts)))
    (row,), (expected,) = merged.compute(), whole.compute()
    assert row.value == pytest.approx(expected.value, rel=1e-9)
    assert row.ci95 == pytest.approx(expected.ci95, rel=1e-7)
    assert row.details.pop("floor_n") == expected.details.pop("floor_n")
    assert row.details == pytest.approx(expected.details, rel=1e-9)
    with pytest.raises(ValueError, match="given twice"):
        evaluator().load_state(merge(parts[0].state(), parts[0].state()))


def test_few_against_many_is_the_formula(batch):
    """One set is kept as features, the other as moments."""
    a, b = pictures(9, 0), pictures(40, 1, high=200)
    features = [Corner()(images).double() for images in (a, b)]
    expected = frechet_distance_of_features(*features)
    assert score(batch, a, b).value == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("n", [6, 40])
def test_both_forms_agree_also_where_features_are_copies_of_each_other(n):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(n, 10, dtype=torch.float64, generator=generator).repeat(1, 2)
    b = 2 * torch.randn(n + 3, 20, dtype=torch.float64, generator=generator) + 1e3
    moments = [Moments.zeros(20), Moments.zeros(20)]
    for part, rows in zip(moments, (a, b), strict=True):
        part.add_(rows)
    assert frechet_distance(*moments) == pytest.approx(frechet_distance_of_features(a, b), rel=1e-7)


def test_few_pictures_are_warned_of(batch):
    (warning,) = score(batch, pictures(11, 0), pictures(50, 1)).warnings
    assert "11 pictures for 12 features" in warning
    assert score(batch, pictures(12, 0), pictures(12, 1)).warnings == []


def test_floor_and_value_at_its_size_are_equal_for_a_perfect_model(batch):
    """Both are biased upwards by their sizes; the value itself has more pictures, so less bias."""
    rows = [score(batch, pictures(100, seed), pictures(100, 50 + seed)) for seed in range(12)]
    floor, matched = (sum(row.details[key] for row in rows) / 12 for key in ("floor", "at_floor_n"))
    assert matched == pytest.approx(floor, rel=0.1)
    assert sum(row.value for row in rows) / 12 < 0.7 * floor
    assert sorted(rows[0].details["floor_n"]) == [49, 51]
    assert rows[0].details["at_floor_n_generated"] == pytest.approx(50, abs=1)


def test_where_sizes_differ_the_value_is_brought_to_the_floors(batch):
    details = score(batch, pictures(30, 0), pictures(200, 1)).details
    assert (details["floor_n"], details["at_floor_n_generated"]) == ([100, 100], 30)
    details = score(batch, pictures(240, 0), pictures(40, 1)).details
    assert details["at_floor_n_generated"] == pytest.approx(40, abs=2)


def test_interval_is_as_wide_as_the_spread_of_other_pictures(batch):
    reference = pictures(100, 99)
    rows = [score(batch, pictures(80, seed, high=230), reference) for seed in range(30)]
    values = torch.tensor([row.value for row in rows])
    standard_errors = [(row.ci95[1] - row.value) / student_quantile(5) for row in rows]
    assert sum(standard_errors) / 30 == pytest.approx(values.std().item(), rel=0.3)
    inside = [row.ci95[0] <= values.mean() <= row.ci95[1] for row in rows]
    assert sum(inside) >= 26


def test_too_few_pictures_have_no_interval_and_no_floor(batch):
    row = score(batch, pictures(5, 0), pictures(3, 1))
    assert (row.ci95, row.details["floor"], row.details["at_floor_n"]) == (None, None, None)
    for sets in ((pictures(1, 0), pictures(9, 1)), (pictures(9, 0), pictures(0, 1))):
        with pytest.raises(ValueError, match="at least 2 pictures per set"):
            score(batch, *sets)


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4).byte(), torch.zeros(3, 4, 4).byte()],
)
def test_pictures_of_another_kind_are_refused(batch, images):
    with pytest.raises(ValueError, match="pictures must be uint8 RGB"):
        evaluator().update(batch("generated", images))


def test_features_that_are_no_numbers_are_counted(batch):
    class Broken(Corner):
        def __call__(self, images):
            features = super().__call__(images)
            features[1:3, 0] = torch.tensor([torch.nan, torch.inf])
            return features

    broken = FrechetEvaluator("fd", Shared(Broken()))
    with pytest.raises(ValueError, match="features of 2 of 5 pictures are NaN or infinite"):
        broken.update(batch("generated", pictures(5, 0)))


def test_features_are_kept_until_their_moments_are_smaller(batch):
    fed = feed(evaluator(), batch, None, 7, generated=pictures(40, 0), reference=pictures(11, 1))
    assert [len(each.few) for each in fed.sets.values()] == [0, 11]
    sizes = {key: tensor.numel() for key, (tensor, _) in fed.state().items()}
    more = feed(evaluator(), batch, None, 7, generated=pictures(400, 0), reference=pictures(11, 1))
    assert {k: v.numel() for k, (v, _) in more.state().items()} == {**sizes, "generated/id": 400}


@pytest.mark.slow
def test_fifty_thousand_pictures_take_less_than_two_gigabytes():
    script = Path(__file__).parents[2] / "benchmarks/evaluation_scale.py"
    program = (
        "import json, runpy, sys\n"
        "benchmark = runpy.run_path(sys.argv[1])\n"
        "benchmark['METRICS'].pop('fd')\n"
        "print(json.dumps(benchmark['peak_memory'](50_000)))"
    )
    command = [sys.executable, "-c", program, str(script)]
    root = Path(__file__).parents[2]
    output = subprocess.run(command, check=True, capture_output=True, cwd=root).stdout
    assert json.loads(output)["peak_gb"] < 2
