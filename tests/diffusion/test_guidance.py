"""Guidance is off at 1, extrapolates above, rescales as diffusers does and keeps its interval."""

import math

import pytest
import torch

from tinydiffusion.diffusion.guidance import MAX_SIGMA, check_guidance_interval, guide, is_guided
from tinydiffusion.diffusion.schedule import SCHEDULES, make_schedule

PREDICTIONS = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CONDITIONAL, UNCONDITIONAL = PREDICTIONS


def test_scale_one_is_off_and_zero_is_unconditional():
    torch.testing.assert_close(guide(CONDITIONAL, UNCONDITIONAL, 1.0), CONDITIONAL)
    torch.testing.assert_close(guide(CONDITIONAL, UNCONDITIONAL, 0.0), UNCONDITIONAL)


def test_scale_three_by_hand():
    expected = 3 * CONDITIONAL - 2 * UNCONDITIONAL
    torch.testing.assert_close(guide(CONDITIONAL, UNCONDITIONAL, 3.0), expected)


@pytest.mark.parametrize("rescale", [0.3, 0.7, 1.0])
def test_rescale_equals_diffusers(rescale):
    guiders = pytest.importorskip("diffusers.guiders.guider_utils")
    guided = guide(CONDITIONAL, UNCONDITIONAL, 5.0)
    expected = guiders.rescale_noise_cfg(guided, CONDITIONAL, guidance_rescale=rescale)
    actual = guide(CONDITIONAL, UNCONDITIONAL, 5.0, rescale)
    torch.testing.assert_close(actual, expected)


def test_full_rescale_restores_the_standard_deviation_of_each_picture():
    guided = guide(CONDITIONAL, UNCONDITIONAL, 5.0, 1.0)
    torch.testing.assert_close(guided.std((1, 2, 3)), CONDITIONAL.std((1, 2, 3)))


def test_flat_pictures_stay_finite():
    flat = torch.zeros(1, 3, 4, 4)
    assert guide(flat, flat, 5.0, 0.7).isfinite().all()


# ---- the interval ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sigma", "guided"), [(0.25, False), (0.5, False), (0.75, True), (2.0, True), (2.01, False)]
)
def test_the_first_bound_is_outside_and_the_second_within(sigma, guided):
    """Equation 6 of Kynkäänniemi et al. (2024)."""
    assert is_guided(torch.tensor(sigma), (0.5, 2.0)) is guided
    assert is_guided(torch.tensor(sigma), None) is True


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_widest_interval_is_everywhere(name):
    check_guidance_interval((0.0, MAX_SIGMA))
    for spacing in ("trailing", "karras"):
        levels = make_schedule(name).sampling_sigmas(50, spacing)[:-1]
        assert all(is_guided(sigma, (0.0, MAX_SIGMA)) for sigma in levels)


@pytest.mark.parametrize(
    "interval",
    [(3.0, 0.3), (1.0, 1.0), (-0.1, 1.0), (0.0, math.inf), (math.nan, 1.0), (0.0, 10_001.0)],
)
def test_an_impossible_interval_is_named_with_what_is_allowed(interval):
    low, high = interval
    message = rf"0 <= low < high <= 10000, got {low:g} and {high:g}; 0 and 10000 is everywhere"
    with pytest.raises(ValueError, match=message):
        check_guidance_interval(interval)
