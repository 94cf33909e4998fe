"""Every prediction type leads back to x_0 and noise, on any path, as in diffusers."""

import pytest
import torch

from tinydiffusion.diffusion.prediction import (
    PREDICTION_TYPES,
    to_x_0,
    training_target,
    x_0_sensitivity,
)
from tinydiffusion.diffusion.schedule import make_schedule

diffusers = pytest.importorskip("diffusers")

TIMESTEPS = torch.tensor([5, 250, 500, 900])


def drawn(schedule_name):
    x_0, noise = torch.randn(2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    schedule = make_schedule(schedule_name)
    a, s = schedule.coefficients(TIMESTEPS)
    return x_0, noise, schedule.add_noise(x_0, noise, TIMESTEPS), a, s


@pytest.mark.parametrize("schedule_name", ["linear", "flow"])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_round_trip(schedule_name, prediction_type):
    x_0, noise, x_t, a, s = drawn(schedule_name)
    target = training_target(prediction_type, x_0, noise, a, s)
    torch.testing.assert_close(to_x_0(prediction_type, target, x_t, a, s), x_0, atol=2e-4, rtol=0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_x_0_equals_diffusers(prediction_type):
    _, output, x_t, a, s = drawn("linear")
    scheduler = diffusers.DDPMScheduler(prediction_type=prediction_type, clip_sample=False)
    actual = to_x_0(prediction_type, output, x_t, a, s)
    for i, t in enumerate(TIMESTEPS):
        expected = scheduler.step(output[i : i + 1], int(t), x_t[i : i + 1]).pred_original_sample
        torch.testing.assert_close(actual[i : i + 1], expected, atol=1e-3, rtol=1e-4)


def test_v_target_equals_diffusers():
    x_0, noise, _, a, s = drawn("linear")
    expected = diffusers.DDPMScheduler().get_velocity(x_0, noise, TIMESTEPS)
    actual = training_target("v_prediction", x_0, noise, a, s)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_flow_target_points_from_picture_to_noise():
    x_0, noise, _, a, s = drawn("flow")
    torch.testing.assert_close(training_target("flow", x_0, noise, a, s), noise - x_0)


@pytest.mark.parametrize("schedule_name", ["linear", "flow"])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_sensitivity_is_the_derivative(schedule_name, prediction_type):
    _, output, x_t, a, s = drawn(schedule_name)
    step = 1.0
    change = to_x_0(prediction_type, output + step, x_t, a, s) - to_x_0(
        prediction_type, output, x_t, a, s
    )
    expected = x_0_sensitivity(prediction_type, a, s).expand_as(change)
    torch.testing.assert_close(change, expected, atol=1e-4, rtol=1e-4)


def test_unknown_prediction_type():
    x = torch.zeros(1, 3, 2, 2)
    one = torch.ones(1, 1, 1, 1)
    with pytest.raises(ValueError, match="did you mean 'epsilon'"):
        training_target("epsilom", x, x, one, one)
