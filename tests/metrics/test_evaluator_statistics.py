"""Moments merge exactly; the Fréchet distance and the intervals equal closed forms and SciPy."""

import math

import pytest
import scipy.linalg
import scipy.stats
import torch

from tinydiffusion.metrics import statistics
from tinydiffusion.metrics.statistics import (
    Moments,
    frechet_distance,
    mean_interval,
    student_interval,
    student_quantile,
    wilson_interval,
)


def moments(features):
    result = Moments.zeros(features.shape[1])
    result.add_(features)
    return result


def normal(n, dimensions, seed, *, mean=0.0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return mean + scale * torch.randn(n, dimensions, dtype=torch.float64, generator=generator)


def test_moments_equal_the_two_pass_formula_far_from_the_origin():
    features = normal(500, 8, seed=0, mean=1000.0)
    torch.testing.assert_close(moments(features).mean(), features.mean(dim=0))
    torch.testing.assert_close(
        moments(features).covariance(), features.T.cov(), rtol=1e-7, atol=1e-9
    )


def test_uneven_parts_merge_to_the_whole():
    features = normal(100, 5, seed=1, mean=3.0)
    whole, parts = moments(features), [moments(p) for p in features.split([1, 30, 69])]
    merged = parts[0].merged(parts[1]).merged(parts[2])
    torch.testing.assert_close(merged.covariance(), whole.covariance(), rtol=1e-12, atol=1e-12)


def test_equals_scipy_sqrtm():
    a, b = normal(60, 12, seed=2), normal(80, 12, seed=3, mean=0.3, scale=1.7)
    cov_a, cov_b = a.T.cov().numpy(), b.T.cov().numpy()
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    mean_term = (a.mean(dim=0) - b.mean(dim=0)).square().sum().item()
    expected = mean_term + (cov_a + cov_b - 2 * root).trace()
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [5, 200])
def test_scaled_and_shifted_copy_has_the_closed_form(n):
    """For b = s a + m: |mean difference|² + (s - 1)² tr(S_a), also with fewer pictures than D."""
    a = normal(n, 16, seed=4)
    b = 3 * a + 2
    mean_term = (a.mean(dim=0) - b.mean(dim=0)).square().sum().item()
    expected = mean_term + 4 * a.T.cov().trace().item()
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [5, 200])
def test_a_set_is_at_no_distance_from_itself_and_never_below_zero(n):
    a = moments(normal(n, 32, seed=5, mean=10))
    assert 0 <= frechet_distance(a, a) < 1e-5


def test_collapsed_sets_differ_by_their_means_only():
    a, b = torch.zeros(4, 3), torch.full((4, 3), 2.0)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(12)


def test_distance_is_symmetric():
    a, b = moments(normal(6, 10, seed=6)), moments(normal(50, 10, seed=7, scale=2))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_one_picture_has_no_covariance():
    a = moments(normal(1, 3, seed=0))
    with pytest.raises(ValueError, match="at least 2 pictures per set, got 1"):
        frechet_distance(a, a)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (7, 10), (10, 10), (480, 1000)])
def test_wilson_interval_equals_scipy(successes, n):
    expected = scipy.stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_pictures_have_no_interval():
    assert wilson_interval(0, 0) is None
    assert mean_interval(torch.ones(1)) is None
    assert student_interval(torch.ones(1)) is None


def test_mean_interval_has_the_closed_form():
    low, high = mean_interval(torch.tensor([0.0, 2.0] * 50, dtype=torch.float64))
    half = 1.959963984540054 * math.sqrt(100 / 99) / 10
    assert (low, high) == pytest.approx((1 - half, 1 + half))


def test_blocks_of_the_symmetric_form_fit_together(monkeypatch):
    """Features that are no multiple of the block, and several blocks."""
    monkeypatch.setattr(statistics, "BLOCK", 5)
    a, b = normal(60, 12, seed=2), normal(80, 12, seed=3, mean=0.3, scale=1.7)
    expected = statistics.frechet_distance_of_features(a, b)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("freedom", [1, 2, 3, 5, 9, 30])
def test_student_quantile_is_right_to_one_percent(freedom):
    expected = scipy.stats.t.ppf(0.975, freedom)
    assert student_quantile(freedom) == pytest.approx(expected, rel=0.01)
    values = normal(freedom + 1, 1, seed=0)[:, 0]
    low, high = student_interval(values)
    assert (high - low) / 2 == pytest.approx(
        expected * values.std().item() / math.sqrt(freedom + 1), rel=0.01
    )
