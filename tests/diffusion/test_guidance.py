"""Guidance is off at scale 1, extrapolates above, and rescales as diffusers does."""

import pytest
import torch

from tinydiffusion.diffusion.guidance import guide

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
