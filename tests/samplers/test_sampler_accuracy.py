"""With Normal data, where the denoiser is exact, samplers have their order and the right spread."""

from functools import partial

import pytest
import torch

from tinydiffusion.diffusion.noise import picture_generators, randn
from tinydiffusion.diffusion.schedule import make_schedule
from tinydiffusion.registry import load
from tinydiffusion.samplers import ddim, ddpm
from tinydiffusion.samplers.ddim import sample_ddim
from tinydiffusion.samplers.ddpm import sample_ddpm

SIGMA_DATA = 0.5


def exact_denoise(x, sigma):
    """The mean of x_0 given x, Karras et al. (2022) eq. 58 for a Normal distribution."""
    return SIGMA_DATA**2 / (SIGMA_DATA**2 + sigma**2) * x


def solve(name, sigmas, **options):
    x = sigmas[0] * randn((2, 3, 16, 16), picture_generators(0, 0, 2), dtype=sigmas.dtype)
    generators = picture_generators(5, 0, 2)
    pictures = load("sampler", name)(exact_denoise, x, sigmas, generators=generators, **options)
    return x, pictures


def error(name, steps):
    """Distance from the exact solution x SIGMA_DATA / sqrt(SIGMA_DATA^2 + sigma^2)."""
    # Few enough steps at even ratios that the last one, to sigma 0, does not count.
    sigmas = torch.logspace(1, -5, steps + 1, dtype=torch.float64)
    x, pictures = solve(name, torch.cat([sigmas, sigmas.new_zeros(1)]))
    exact = x * SIGMA_DATA / (SIGMA_DATA**2 + sigmas[0] ** 2).sqrt()
    return (pictures - exact).abs().max()


@pytest.mark.parametrize(
    ("name", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)]
)
def test_order_of_convergence(name, order):
    ratio = error(name, 100) / error(name, 200)
    assert 2 ** (order - 0.2) < ratio < 2 ** (order + 0.3)


@pytest.mark.parametrize("name", ["euler", "ddim", "heun", "dpmpp_2m"])
def test_flow_reaches_the_exact_solution(name):
    sigmas = make_schedule("linear").sampling_sigmas(500)
    x, pictures = solve(name, sigmas)
    exact = x * SIGMA_DATA / (SIGMA_DATA**2 + sigmas[0] ** 2).sqrt()
    torch.testing.assert_close(pictures, exact, atol=0.02, rtol=0)


@pytest.mark.parametrize("schedule_name", ["cosine", "flow"])
@pytest.mark.parametrize("name", ["euler", "ddim", "heun", "dpmpp_2m"])
def test_twenty_steps_from_pure_noise_are_near(schedule_name, name):
    sigmas = make_schedule(schedule_name).sampling_sigmas(20)
    x, pictures = solve(name, sigmas)
    exact = x * SIGMA_DATA / (SIGMA_DATA**2 + sigmas[0] ** 2).sqrt()
    torch.testing.assert_close(pictures.std(), exact.std(), atol=0.04, rtol=0)


@pytest.mark.parametrize(("name", "options"), [("ddpm", {}), ("ddim", {"eta": 1.0})])
def test_ancestral_samplers_give_the_standard_deviation(name, options):
    sigmas = make_schedule("linear").sampling_sigmas(1000)
    _, pictures = solve(name, sigmas, **options)
    torch.testing.assert_close(pictures.std(), torch.tensor(SIGMA_DATA), atol=0.015, rtol=0)


def test_eta_draws_the_noise_anew():
    sigmas = make_schedule("linear").sampling_sigmas(200)
    start, fixed = solve("ddim", sigmas)
    _, fresh = solve("ddim", sigmas, eta=1.0)

    def correlation(pictures):
        return torch.corrcoef(torch.stack([start.flatten(), pictures.flatten()]))[0, 1]

    torch.testing.assert_close(correlation(fixed), torch.tensor(1.0), atol=1e-4, rtol=0)
    assert correlation(fresh).abs() < 0.1


@pytest.mark.parametrize(
    ("sampler", "transition"),
    [
        (sample_ddpm, ddpm.transition),
        (partial(sample_ddim, eta=0.7), partial(ddim.transition, eta=0.7)),
    ],
    ids=["ddpm", "ddim"],
)
def test_one_step_draws_from_its_transition(sampler, transition):
    """Mean and standard deviation of 4,000 draws are those that the transition states."""
    count, sigmas = 4_000, torch.tensor([2.0, 1.0, 0.0])
    x = torch.full((count, 1, 1, 1), 1.5)
    seen = []

    def denoise(x, sigma):
        seen.append(x)
        return 0.3 * x

    generators = [torch.Generator().manual_seed(i) for i in range(count)]
    sampler(denoise, x, sigmas, generators=generators)
    mean, std = transition(x, 0.3 * x, sigmas[0], sigmas[1])
    assert abs(seen[1].mean() - mean[0]) < 4 * std / count**0.5
    assert abs(seen[1].std() / std - 1) < 4 / (2 * count) ** 0.5
    last, none = transition(x, 0.3 * x, sigmas[1], sigmas[2])
    assert none == 0
    torch.testing.assert_close(last, 0.3 * x)
