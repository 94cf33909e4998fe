"""Picture i gets the same noise in any batch, chosen or not; every seed in [0, 2**64) is one."""

import pytest
import torch

from tinydiffusion.diffusion.noise import nearest_randn, picture_generators, randn


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


# ---- the nearest of several ------------------------------------------------------------------


def pictures(count, size=4):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_of_one_candidate_it_is_the_plain_noise():
    nearest = nearest_randn(pictures(5), picture_generators(0, 0, 5), 1)
    assert torch.equal(nearest, randn((5, 3, 4, 4), picture_generators(0, 0, 5)))


@pytest.mark.parametrize("num_candidates", [2, 5, 64])
def test_it_is_the_candidate_with_the_least_squared_distance(num_candidates):
    """... of those that the picture's own generator draws."""
    x_0 = pictures(6)
    chosen = nearest_randn(x_0, picture_generators(3, 0, 6), num_candidates)
    places = set()
    for i, (x, noise) in enumerate(zip(x_0, chosen, strict=True)):
        (generator,) = picture_generators(3, i, 1)
        candidates = torch.randn(num_candidates, 3, 4, 4, generator=generator)
        distances = [(x - candidate).double().pow(2).sum().item() for candidate in candidates]
        place = distances.index(min(distances))
        assert torch.equal(noise, candidates[place])
        places.add(place)
    assert len(places) > 1


@pytest.mark.parametrize("sizes", [[1] * 12, [5, 7], [3, 1, 8]])
def test_the_choice_is_the_same_however_the_batch_is_cut(sizes):
    x_0, first = pictures(12, size=16), 0
    together = nearest_randn(x_0, picture_generators(0, 0, 12), 8)
    for size in sizes:
        here = slice(first, first + size)
        part = nearest_randn(x_0[here], picture_generators(0, first, size), 8)
        assert torch.equal(part, together[here])
        first += size


@pytest.mark.parametrize(("num_candidates", "largest"), [(2, 0.5642), (4, 1.0294), (16, 1.7660)])
def test_it_leans_towards_the_picture_as_much_as_is_said(num_candidates, largest):
    """`largest`: expected largest of so many standard normal numbers."""
    x = pictures(1, size=8)
    generators = picture_generators(0, 0, 3000)
    chosen = nearest_randn(x.expand(3000, -1, -1, -1), generators, num_candidates)
    squared = x.square().sum()
    share = ((chosen * x).sum((1, 2, 3)) / squared).mean()
    expected = 2 * largest / (2 * x.numel() + 4 * squared).sqrt()
    torch.testing.assert_close(share, expected, atol=3 / (3000 * squared).sqrt().item(), rtol=0)
    assert chosen.square().mean() < 1


@pytest.mark.parametrize("num_candidates", [1, 2])
def test_wrong_number_of_generators_for_pictures(num_candidates):
    with pytest.raises(ValueError, match="3 pictures need 3 generators, got 1"):
        nearest_randn(pictures(3), picture_generators(0, 0, 1), num_candidates)
