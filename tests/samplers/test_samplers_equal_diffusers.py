"""Each sampler takes the same steps as the diffusers scheduler of that name, number by number."""

import pytest
import torch

from tinydiffusion.diffusion.noise import picture_generators, randn
from tinydiffusion.diffusion.schedule import make_schedule
from tinydiffusion.registry import load

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SHAPE = (3, 3, 4, 4)
SCHEDULE = make_schedule("scaled_linear")


def toy_denoise(x, sigma):
    """Nonlinear in x, different at every noise level."""
    return 0.8 * torch.tanh(x / (1 + sigma**2).sqrt() + 0.3) + 0.1 * torch.sin(3 * x / (1 + sigma))


def ours(name, steps, **options):
    sigmas = SCHEDULE.sampling_sigmas(steps)
    x = sigmas[0] * randn(SHAPE, picture_generators(0, 0, SHAPE[0]))
    generators = picture_generators(7, 0, SHAPE[0])
    return load("sampler", name)(toy_denoise, x, sigmas, generators=generators, **options)


def make(name, **options):
    betas = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "scaled_linear"}
    return getattr(diffusers, name)(**betas, timestep_spacing="trailing", **options)


def theirs(scheduler, steps, prediction_type="sample", **step_options):
    """The scheduler's own loop: variance preserving input, sample in its own space."""
    scheduler.register_to_config(prediction_type=prediction_type)
    scheduler.set_timesteps(steps)
    sample = randn(SHAPE, picture_generators(0, 0, SHAPE[0]))
    sigma_max = SCHEDULE.sigmas[-1]
    in_sigma_units = scheduler.init_noise_sigma != 1
    sample = sample * (sigma_max if in_sigma_units else sigma_max * SCHEDULE.signal[-1])
    for t in scheduler.timesteps:
        sigma = SCHEDULE.sigmas[int(t)]
        x = scheduler.scale_model_input(sample, t) * (1 + sigma**2).sqrt()
        output = toy_denoise(x, sigma)
        if prediction_type == "epsilon":
            output = (x - output) / sigma
        sample = scheduler.step(output, t, sample, **step_options).prev_sample
    return sample


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("steps", [1, 10, 50])
def test_ddpm(steps):
    scheduler = make("DDPMScheduler", clip_sample=False)
    generators = picture_generators(7, 0, SHAPE[0])
    assert_same(ours("ddpm", steps), theirs(scheduler, steps, generator=generators))


@pytest.mark.parametrize("steps", [1, 10, 50])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(steps, eta):
    scheduler = make("DDIMScheduler", clip_sample=False)
    generators = picture_generators(7, 0, SHAPE[0])
    expected = theirs(scheduler, steps, eta=eta, generator=generators)
    assert_same(ours("ddim", steps, eta=eta), expected)


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_euler(steps):
    assert_same(ours("euler", steps), theirs(make("EulerDiscreteScheduler"), steps))


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_heun(steps):
    expected = theirs(make("HeunDiscreteScheduler"), steps, prediction_type="epsilon")
    assert_same(ours("heun", steps), expected)


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_dpmpp_2m(steps):
    scheduler = make(
        "DPMSolverMultistepScheduler",
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
    )
    assert_same(ours("dpmpp_2m", steps), theirs(scheduler, steps))
