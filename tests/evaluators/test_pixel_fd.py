"""Area averages are exact; the pixel distance has its closed forms and its floor."""

import pytest
import torch
from torch.nn.functional import avg_pool2d

from tinydiffusion.evaluators.pixel_fd import PixelFD
from tinydiffusion.feature_extractors.pixels import AreaAverage


def score(evaluator, *batches):
    for one in batches:
        evaluator.update(one)
    return evaluator.compute()[0]


@pytest.mark.parametrize("size", [8, 16, 64])
def test_box_average_is_exact_where_the_side_divides(pictures, size):
    images = pictures(3, size)
    expected = avg_pool2d(images.double(), size // 8).flatten(1) / 255
    torch.testing.assert_close(AreaAverage(size=8)(images), expected.float(), rtol=0, atol=1e-7)


def test_a_border_inside_a_pixel_shares_it():
    """Three columns onto two: the middle one is halved."""
    columns = torch.tensor([0, 30, 255], dtype=torch.uint8)
    images = columns.expand(1, 3, 3, 3).contiguous()
    left, right = (0 + 15) / 1.5 / 255, (15 + 255) / 1.5 / 255
    expected = torch.tensor([left, right]).repeat(6)[None]
    torch.testing.assert_close(AreaAverage(size=2)(images), expected)


def test_mean_is_kept_at_any_size(pictures):
    images = pictures(2, 13)
    features = AreaAverage(size=8)(images)
    torch.testing.assert_close(features.mean(dim=1), images.float().mean(dim=(1, 2, 3)) / 255)


def test_a_set_with_itself_is_zero(batch, pictures):
    images = pictures(40)
    result = score(PixelFD(), batch("generated", images), batch("reference", images))
    assert 0 <= result.value < 1e-8
    assert (result.n, result.higher_is_better) == (40, False)


def test_a_constant_shift_is_its_square(batch, pictures):
    images = pictures(30) // 2
    brighter = images + 51  # 0.2 on each of 192 features
    result = score(PixelFD(), batch("generated", brighter), batch("reference", images))
    assert result.value == pytest.approx(192 * 0.2**2, rel=1e-6)


def test_floor_is_the_distance_between_two_near_equal_halves(batch, pictures):
    evaluator = PixelFD(size=2)
    images = pictures(101)
    result = score(evaluator, batch("generated", images), batch("reference", images))
    assert sorted(result.details["floor_n"]) == [50, 51]
    assert 0 < result.details["floor"] < 0.1
    planted = images.clone()
    first = torch.frac(torch.arange(101).double() * 0.6180339887498949) < 0.5
    assert first.sum() == result.details["floor_n"][0]
    planted[first], planted[~first] = 0, 255
    result = score(PixelFD(size=2), batch("generated", images), batch("reference", planted))
    assert result.details["floor"] == pytest.approx(12)


def test_too_few_pictures_are_a_clear_error(batch, pictures):
    with pytest.raises(ValueError, match="at least 2 pictures per set, got 0"):
        score(PixelFD(), batch("reference", pictures(3)))
    with pytest.raises(ValueError, match=r"size must be in \[1, 32\], got 0"):
        PixelFD(size=0)
