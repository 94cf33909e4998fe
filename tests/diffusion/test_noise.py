"""Picture i gets the same noise in any batch; every seed in [0, 2**64) is a seed."""

import pytest
import torch

from tinydiffusion.diffusion.noise import picture_generators, randn


def test_picture_i_is_the_same_in_any_batch():
    together = randn((5, 3, 4, 4), picture_generators(0, 0, 5))
    for first, count in [(0, 2), (2, 3), (4, 1)]:
        part = randn((count, 3, 4, 4), picture_generators(0, first, count))
        torch.testing.assert_close(part, together[first : first + count], rtol=0, atol=0)


def test_picture_i_of_seed_s_is_picture_0_of_seed_s_plus_i():
    a, b = picture_generators(10, 7, 1), picture_generators(17, 0, 1)
    torch.testing.assert_close(randn((1, 3, 2, 2), a), randn((1, 3, 2, 2), b), rtol=0, atol=0)


def test_noise_is_standard_normal_and_differs_between_pictures():
    noise = randn((2, 3, 64, 64), picture_generators(0, 0, 2))
    torch.testing.assert_close(noise.std(), torch.tensor(1.0), atol=0.02, rtol=0)
    torch.testing.assert_close(noise.mean(), torch.tensor(0.0), atol=0.02, rtol=0)
    assert (noise[0] * noise[1]).mean().abs() < 0.05


def test_dtype_rounds_the_same_noise():
    exact = randn((1, 3, 8, 8), picture_generators(3, 0, 1))
    half = randn((1, 3, 8, 8), picture_generators(3, 0, 1), dtype=torch.bfloat16)
    torch.testing.assert_close(half, exact.bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("seed", [0, 2**64 - 2])
def test_extreme_seeds_are_seeds(seed):
    first, second = randn((2, 3, 4, 4), picture_generators(seed, 0, 2))
    assert not first.equal(second)


@pytest.mark.parametrize(("seed", "first", "count"), [(-1, 0, 1), (2**64, 0, 1), (2**64 - 2, 1, 2)])
def test_seeds_outside_the_range(seed, first, count):
    with pytest.raises(ValueError, match=r"\[0, 2\*\*64\)"):
        picture_generators(seed, first, count)


def test_wrong_number_of_generators():
    with pytest.raises(ValueError, match="3 pictures need 3 generators, got 1"):
        randn((3, 3, 4, 4), picture_generators(0, 0, 1))
