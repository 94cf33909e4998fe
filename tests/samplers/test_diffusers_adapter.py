"""The adapter runs the schedulers of diffusers, on any training schedule, to the right pictures."""

import pytest
import torch

from tinydiffusion.diffusion.noise import picture_generators, randn
from tinydiffusion.diffusion.schedule import make_schedule
from tinydiffusion.registry import load

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SIGMA_DATA = 0.5
DETERMINISTIC = [
    "DDIMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "UniPCMultistepScheduler",
]
STOCHASTIC = [
    "DDPMScheduler",
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "SASolverScheduler",
    "TCDScheduler",
]


def exact_denoise(x, sigma):
    return SIGMA_DATA**2 / (SIGMA_DATA**2 + sigma**2) * x


def sample(scheduler, schedule_name="linear", steps=40, denoise=exact_denoise, **options):
    schedule = make_schedule(schedule_name)
    sigmas = schedule.sampling_sigmas(steps)
    x = sigmas[0] * randn((2, 3, 16, 16), picture_generators(0, 0, 2))
    pictures = load("sampler", "diffusers")(
        denoise,
        x,
        sigmas,
        generators=picture_generators(5, 0, 2),
        scheduler=scheduler,
        train_sigmas=schedule.sigmas,
        scheduler_options=options or None,
    )
    return x, sigmas, pictures


@pytest.mark.parametrize("scheduler", DETERMINISTIC)
@pytest.mark.parametrize("schedule_name", ["linear", "cosine", "flow"])
def test_deterministic_schedulers_solve_the_flow(scheduler, schedule_name):
    x, sigmas, pictures = sample(scheduler, schedule_name)
    exact = x * SIGMA_DATA / (SIGMA_DATA**2 + sigmas[0] ** 2).sqrt()
    assert (pictures - exact).pow(2).mean().sqrt() < 0.04


@pytest.mark.parametrize("scheduler", STOCHASTIC)
@pytest.mark.parametrize("schedule_name", ["linear", "flow"])
def test_stochastic_schedulers_give_the_standard_deviation(scheduler, schedule_name):
    _, _, pictures = sample(scheduler, schedule_name)
    torch.testing.assert_close(pictures.std(), torch.tensor(SIGMA_DATA), atol=0.07, rtol=0)


@pytest.mark.parametrize(
    ("scheduler", "sampler"),
    [
        ("DDPMScheduler", "ddpm"),
        ("DDIMScheduler", "ddim"),
        ("EulerDiscreteScheduler", "euler"),
        ("HeunDiscreteScheduler", "heun"),
        ("FlowMatchEulerDiscreteScheduler", "euler"),
        ("DPMSolverMultistepScheduler", "dpmpp_2m"),
    ],
)
def test_agrees_with_our_own_sampler(scheduler, sampler):
    def denoise(x, sigma):
        return 0.8 * torch.tanh(x / (1 + sigma**2).sqrt() + 0.3)

    x, sigmas, pictures = sample(scheduler, steps=20, denoise=denoise)
    ours = load("sampler", sampler)(denoise, x, sigmas, generators=picture_generators(5, 0, 2))
    torch.testing.assert_close(pictures, ours, atol=2e-3, rtol=0)


def test_options_reach_the_scheduler():
    _, _, plain = sample("DPMSolverMultistepScheduler", steps=8)
    _, _, karras = sample("DPMSolverMultistepScheduler", steps=8, use_karras_sigmas=True)
    assert not plain.allclose(karras, atol=1e-3)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ("DDIMSchedular", "did you mean 'DDIMScheduler'"),
        ("EDMEulerScheduler", "not made for a schedule of betas"),
        ("DDIMInverseScheduler", "more than noise"),
        ("CogVideoXDPMScheduler", "more than noise"),
        ("FlowMatchHeunDiscreteScheduler", "does not take noise levels"),
    ],
)
def test_refuses_what_it_cannot_run(scheduler, message):
    with pytest.raises(ValueError, match=message):
        sample(scheduler)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_faults_of_options(scheduler):
    with pytest.raises(ValueError, match="follows from the trained model"):
        sample(scheduler, num_train_timesteps=10)
    with pytest.raises(ValueError, match="no option 'shiift'"):
        sample(scheduler, shiift=3.0)
