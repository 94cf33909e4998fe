"""CMMD equals its formula, is unbiased, and is ten times the squared distance of the means."""

import pytest
import torch
from torch.nn.functional import normalize

from tinydiffusion.evaluators.cmmd import CMMD, gaussian
from tinydiffusion.feature_extractors.open_clip import OpenCLIP
from tinydiffusion.metrics.mmd import unbiased_mmd


def unit(n, dimensions=24, seed=0, offset=0.0):
    """Random unit vectors, moved to one side by `offset`."""
    rows = torch.randn(
        n, dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    rows[:, 0] += offset
    return normalize(rows, dim=1)


def kernel_means(x, y):
    """Means of the Gaussian kernel over pairs within x, within y and across, by the definition."""
    pairs = [(x, x), (y, y), (x, y)]
    return [torch.exp(-(a[:, None] - b[None]).square().sum(2) / 200).mean() for a, b in pairs]


def biased(x, y):
    """Gretton et al. (2012), eq. 5, which keeps the pairs of a picture with itself."""
    within_x, within_y, across = kernel_means(x, y)
    return (within_x + within_y - 2 * across).item()


def test_kernel_equals_its_definition():
    x, y = unit(5), unit(7, seed=1)
    expected = torch.exp(-torch.cdist(x, y).square() / (2 * 10**2))
    torch.testing.assert_close(gaussian(x, y), expected)


@pytest.mark.parametrize(("n", "m"), [(9, 9), (30, 11), (2, 5)])
def test_equals_the_biased_estimate_without_the_pairs_of_a_picture_with_itself(n, m):
    """k(x, x) = 1: a mean over all pairs is (1 + (n - 1) times that over different ones) / n."""
    x, y = unit(n), unit(m, seed=1, offset=1.0)
    within_x, within_y, across = kernel_means(x, y)
    different_x, different_y = (n * within_x - 1) / (n - 1), (m * within_y - 1) / (m - 1)
    expected = (different_x + different_y - 2 * across).item()
    assert unbiased_mmd(x, y, gaussian)[0] == pytest.approx(expected, abs=1e-12)
    assert biased(x, y) > expected


def test_pieces_equal_the_whole(monkeypatch):
    x, y = unit(50), unit(33, seed=1)
    whole = unbiased_mmd(x, y, gaussian)
    monkeypatch.setattr("tinydiffusion.metrics.mmd.CHUNK", 8)
    pieces = unbiased_mmd(x, y, gaussian)
    assert pieces[0] == pytest.approx(whole[0], abs=1e-12)
    assert pieces[1] == pytest.approx(whole[1], abs=1e-12)


def test_interval_is_that_of_the_jackknife():
    x, y = unit(12), unit(9, seed=1, offset=0.5)
    value, (low, high) = unbiased_mmd(x, y, gaussian)
    variance = 0.0
    for n, without in (
        (12, [unbiased_mmd(torch.cat([x[:i], x[i + 1 :]]), y, gaussian)[0] for i in range(12)]),
        (9, [unbiased_mmd(x, torch.cat([y[:i], y[i + 1 :]]), gaussian)[0] for i in range(9)]),
    ):
        values = torch.tensor(without, dtype=torch.float64)
        variance += (n - 1) / n * (values - values.mean()).square().sum().item()
    assert high - low == pytest.approx(2 * 1.959963984540054 * variance**0.5, rel=1e-9)
    assert (low + high) / 2 == pytest.approx(value)


def test_equal_distributions_give_zero_on_average_and_negative_numbers_often():
    """200 times 20 + 20 pictures: the mean is within three of its errors of 0."""
    values = [
        unbiased_mmd(unit(20, seed=2 * i), unit(20, seed=2 * i + 1), gaussian) for i in range(200)
    ]
    estimates = 1000 * torch.tensor([value for value, _ in values])
    assert estimates.mean().abs() < 3 * estimates.std() / 200**0.5
    assert 0.3 < (estimates < 0).double().mean() < 0.8
    assert 1000 * biased(unit(20, seed=0), unit(20, seed=1)) > 10 * estimates.mean().abs()
    covered = [low <= 0 <= high for _, (low, high) in values]
    assert sum(covered) >= 0.9 * len(covered)


def test_is_ten_times_the_squared_distance_of_the_means():
    x, y = unit(1500, offset=1.0), unit(1500, seed=1, offset=2.0)
    difference = (x.mean(dim=0) - y.mean(dim=0)).square().sum().item()
    difference -= (x.var(dim=0).sum() + y.var(dim=0).sum()).item() / 1500  # the means' own errors
    assert 1000 * unbiased_mmd(x, y, gaussian)[0] == pytest.approx(10 * difference, rel=0.02)


def test_is_measured_on_unit_embeddings_of_the_model(clip_model, batch, pictures):
    generated, reference = pictures(8, 32), pictures(6, 32, seed=1) // 2
    evaluator = CMMD(model=clip_model)
    evaluator.update(batch("generated", generated))
    evaluator.update(batch("reference", reference))
    (row,) = evaluator.compute()
    extractor = OpenCLIP(model=clip_model)
    x, y = (normalize(extractor(images).double(), dim=1) for images in (generated, reference))
    expected = 1000 * unbiased_mmd(x, y, gaussian)[0]
    assert row.value == pytest.approx(expected, rel=1e-4)
    assert (row.name, row.n, row.higher_is_better) == ("cmmd[local-dir:tiny]", 8, False)
    assert (row.details["n_reference"], row.details["sigma"]) == (6, 10)
    assert row.ci95[0] < row.value < row.ci95[1]
    assert "open_clip_torch" in evaluator.provenance()["packages"]


def test_too_few_pictures_are_an_error(clip_model, batch, pictures):
    evaluator = CMMD(model=clip_model)
    evaluator.update(batch("generated", pictures(1)))
    with pytest.raises(ValueError, match="no reference picture"):
        evaluator.compute()
    evaluator.update(batch("reference", pictures(3)))
    with pytest.raises(ValueError, match="at least 2 pictures per set, got 1 and 3"):
        evaluator.compute()
    evaluator.update(batch("generated", pictures(1), first_id=1))
    assert evaluator.compute()[0].ci95 is None
