"""Schedules equal those of diffusers, rise strictly, and map noise levels to timesteps and back."""

import pytest
import torch

from tinydiffusion.diffusion.schedule import SCHEDULES, SPACINGS, make_schedule

diffusers = pytest.importorskip("diffusers")

THEIR_NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


@pytest.mark.parametrize("name", THEIR_NAMES)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_alphas_cumprod_equal_diffusers(name, zero_terminal_snr):
    scheduler = diffusers.DDPMScheduler(
        beta_schedule=THEIR_NAMES[name], rescale_betas_zero_snr=zero_terminal_snr
    )
    schedule = make_schedule(name, zero_terminal_snr=zero_terminal_snr)
    torch.testing.assert_close(schedule.alphas_cumprod, scheduler.alphas_cumprod, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_equals_diffusers(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = make_schedule("flow", shift=shift)
    expected = scheduler.sigmas.flip(0)  # their sigma is our noise factor
    torch.testing.assert_close(schedule.noise[:-1], expected[:-1], atol=1e-6, rtol=0)
    assert schedule.noise[-1] == 1 - 2**-12


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("T", [2, 10, 1000, 4000])
def test_sigmas_rise_strictly_to_at_most_4096(name, zero_terminal_snr, T):
    schedule = make_schedule(name, num_train_timesteps=T, zero_terminal_snr=zero_terminal_snr)
    assert schedule.sigmas.shape == (T,)
    assert schedule.sigmas[0] > 0
    assert (schedule.sigmas.diff() > 0).all()
    assert schedule.sigmas[-1] <= 4096
    if zero_terminal_snr:
        assert schedule.sigmas[-1] >= 4095


@pytest.mark.parametrize("name", SCHEDULES)
def test_signal_and_noise_lie_on_the_path(name):
    schedule = make_schedule(name)
    power = 1 if schedule.path == "linear" else 2
    together = schedule.signal**power + schedule.noise**power
    torch.testing.assert_close(together, torch.ones(1000))
    torch.testing.assert_close(schedule.signal_of(schedule.sigmas), schedule.signal)


@pytest.mark.parametrize("name", SCHEDULES)
def test_timestep_of_inverts_sigmas_and_is_clamped(name):
    schedule = make_schedule(name)
    timesteps = schedule.timestep_of(schedule.sigmas)
    between = torch.linspace(0, schedule.num_train_timesteps - 1, 2345)
    torch.testing.assert_close(schedule.timestep_of(schedule.sigma_of(between)), between,
                               rtol=1e-5, atol=1e-2)  # fmt: skip
    torch.testing.assert_close(timesteps, torch.arange(1000.0), atol=1e-3, rtol=0)
    outside = schedule.timestep_of(torch.tensor([0.0, 1e-9, 1e9]))
    torch.testing.assert_close(outside, torch.tensor([0.0, 0.0, 999.0]))


def test_timestep_of_equals_diffusers_between_timesteps():
    schedule, scheduler = make_schedule("linear"), diffusers.EulerDiscreteScheduler()
    sigmas = torch.tensor([0.02, 0.5, 3.3, 80.0])
    log_sigmas = scheduler.sigmas[:-1].flip(0).log().numpy()
    expected = torch.from_numpy(scheduler._sigma_to_t(sigmas.numpy(), log_sigmas)).float()
    torch.testing.assert_close(schedule.timestep_of(sigmas), expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("steps", [2, 3, 7, 10, 50, 333, 1000])
def test_sampling_sigmas_are_those_of_diffusers_timesteps(spacing, steps):
    schedule = make_schedule("linear")
    scheduler = diffusers.DDPMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    expected = torch.cat([schedule.sigmas[scheduler.timesteps], torch.zeros(1)])
    torch.testing.assert_close(schedule.sampling_sigmas(steps, spacing), expected, rtol=0, atol=0)


@pytest.mark.parametrize("steps", [2, 10, 50])
def test_karras_sigmas_equal_diffusers(steps):
    scheduler = diffusers.EulerDiscreteScheduler(use_karras_sigmas=True)
    scheduler.set_timesteps(steps)
    sigmas = make_schedule("linear").sampling_sigmas(steps, "karras")
    torch.testing.assert_close(sigmas, scheduler.sigmas, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [2, 20, 1000])
def test_sampling_sigmas_fall_to_zero(name, spacing, steps):
    sigmas = make_schedule(name, zero_terminal_snr=True).sampling_sigmas(steps, spacing)
    assert sigmas.shape == (steps + 1,)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_one_step_starts_from_pure_noise():
    schedule = make_schedule("flow")
    for spacing in ("trailing", "karras"):
        expected = torch.stack([schedule.sigmas[-1], torch.tensor(0.0)])
        torch.testing.assert_close(schedule.sampling_sigmas(1, spacing), expected)


def test_add_noise_equals_diffusers():
    x_0, noise = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([0, 250, 700, 999])
    actual = make_schedule("linear").add_noise(x_0, noise, timesteps)
    expected = diffusers.DDPMScheduler().add_noise(x_0, noise, timesteps)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_flow_has_no_alphas_cumprod():
    with pytest.raises(ValueError, match="variance-preserving"):
        _ = make_schedule("flow").alphas_cumprod


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cosin"}, "did you mean 'cosine'"),
        ({"name": "linear", "num_train_timesteps": 1}, r"in \[2, 100000\], got 1"),
        ({"name": "flow", "num_train_timesteps": 10**9}, r"in \[2, 100000\], got 1000000000"),
        ({"name": "flow", "shift": 1e18}, r"in \[0.01, 100\], and 1 unless .* got 1e\+18"),
        ({"name": "linear", "beta_start": 0.1, "beta_end": 0.02}, "0.1 and 0.02"),
        ({"name": "flow", "shift": 0.0}, "got 0.0"),
        ({"name": "linear", "shift": 3.0}, "unless the schedule is flow"),
    ],
)
def test_faults_of_make_schedule(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(**arguments)


@pytest.mark.parametrize(
    ("steps", "spacing", "message"),
    [
        (0, "trailing", r"\[1, 1000\] with trailing spacing, got 0"),
        (1001, "karras", "got 1001"),
        (1, "leading", r"\[2, 1000\]"),
        (10, "karas", "did you mean 'karras'"),
    ],
)
def test_faults_of_sampling_sigmas(steps, spacing, message):
    with pytest.raises(ValueError, match=message):
        make_schedule("linear").sampling_sigmas(steps, spacing)
