"""A perfect network gives back x_0 for any schedule, prediction type and guidance."""

from itertools import product

import pytest
import torch
from torch import nn

from tinydiffusion.abilities import TextFirst
from tinydiffusion.diffusion.denoiser import Denoiser
from tinydiffusion.diffusion.guidance import guide
from tinydiffusion.diffusion.prediction import training_target
from tinydiffusion.diffusion.schedule import make_schedule
from tinydiffusion.protocols import TextStates

B = 3


def text_states(value):
    """Text states that carry one number, in every one of their parts."""
    return TextStates(
        torch.full((B, 4, 6), value), torch.ones(B, 4, dtype=torch.bool), torch.full((B, 5), value)
    )


class PerfectNetwork(nn.Module):
    """Knows that x_0 is the number in the text; remembers what it was asked."""

    def __init__(self, schedule, prediction_type):
        super().__init__()
        self.schedule, self.prediction_type = schedule, prediction_type
        self.calls = []

    def forward(self, sample, timesteps, text):
        self.calls.append((len(sample), timesteps))
        assert text.encoder_hidden_states.shape[0] == text.mask.shape[0] == len(sample)
        a, s = self.schedule.coefficients(timesteps.round().long())
        x_0 = text.pooled[:, :1, None, None].expand_as(sample)
        return training_target(self.prediction_type, x_0, (sample - a * x_0) / s, a, s)


def make(schedule_name="linear", prediction_type="v_prediction"):
    schedule = make_schedule(schedule_name)
    network = PerfectNetwork(schedule, prediction_type)
    return Denoiser(network, schedule, prediction_type=prediction_type)


def noisy(sigma):
    return 0.3 + sigma * torch.randn(B, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("schedule_name", "prediction_type"),
    [
        ("linear", "epsilon"),  # with the others it is refused, see below
        *product(["linear", "cosine", "flow"], ["v_prediction", "sample", "flow"]),
    ],
)
@pytest.mark.parametrize("timestep", [0, 400, 950])
def test_gives_back_x_0(schedule_name, prediction_type, timestep):
    denoiser = make(schedule_name, prediction_type)
    sigma = denoiser.schedule.sigmas[timestep]
    x_0 = denoiser.denoise(text_states(0.3))(noisy(sigma), sigma)
    torch.testing.assert_close(x_0, torch.full_like(x_0, 0.3), atol=1e-3, rtol=0)
    _, timesteps = denoiser.network.calls[0]
    torch.testing.assert_close(timesteps, torch.full((B,), float(timestep)), atol=1e-2, rtol=0)


def test_network_sees_the_training_input():
    seen = {}

    class Spy(nn.Module):
        def forward(self, sample, timesteps, text):
            seen["x_t"] = sample
            return sample

    schedule = make_schedule("cosine")
    denoise = Denoiser(Spy(), schedule, prediction_type="sample").denoise(text_states(0.0))
    noise = torch.randn(B, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x_0 = torch.full_like(noise, 0.5)
    denoise(x_0 + schedule.sigmas[600] * noise, schedule.sigmas[600])
    expected = schedule.add_noise(x_0, noise, torch.full((B,), 600))
    torch.testing.assert_close(seen["x_t"], expected, atol=1e-5, rtol=0)


def test_guidance_runs_both_halves_in_one_call():
    denoiser = make()
    sigma = denoiser.schedule.sigmas[400]
    x = noisy(sigma)
    denoise = denoiser.denoise(text_states(0.3), negative=text_states(0.1), guidance_scale=2.0)
    x_0 = denoise(x, sigma)
    torch.testing.assert_close(x_0, torch.full_like(x_0, 0.5), atol=1e-3, rtol=0)
    assert [size for size, _ in denoiser.network.calls] == [2 * B]


@pytest.mark.parametrize("first", [False, True])
def test_a_network_that_takes_the_text_first_is_told_it_once(first):
    told, calls = [], []

    class Telling(nn.Module):
        def forward(self, sample, timesteps, text):
            calls.append(len(sample))
            return sample * text.pooled.mean()

    class TellingFirst(Telling, TextFirst):
        def with_text(self, text):
            told.append(len(text.pooled))
            return lambda sample, timesteps: self(sample, timesteps, text)

    network = TellingFirst() if first else Telling()
    denoiser = Denoiser(network, make().schedule, prediction_type="sample")
    denoise = denoiser.denoise(text_states(0.3), negative=text_states(0.1), guidance_scale=2.0)
    outputs = [denoise(noisy(sigma), torch.tensor(sigma)) for sigma in (2.0, 1.0)]
    count = len(noisy(2.0))
    assert calls == [2 * count] * 2
    assert told == ([count, 2 * count] if first else [])
    assert outputs[0].shape == outputs[1].shape == noisy(1.0).shape


def test_guidance_equals_two_calls():
    class Network(nn.Module):
        def forward(self, sample, timesteps, text):
            return torch.sin(sample + text.pooled[:, :1, None, None])

    denoiser = Denoiser(Network(), make_schedule("linear"), prediction_type="v_prediction")
    x, sigma = noisy(2.0), torch.tensor(2.0)
    text, negative = text_states(0.3), text_states(-0.4)
    both = denoiser.denoise(text, negative=negative, guidance_scale=3.0, guidance_rescale=0.7)
    expected = guide(
        denoiser.denoise(text)(x, sigma), denoiser.denoise(negative)(x, sigma), 3.0, 0.7
    )
    torch.testing.assert_close(both(x, sigma), expected)


def test_scale_one_needs_one_half():
    denoiser = make()
    denoiser.denoise(text_states(0.3), negative=text_states(0.1))(noisy(2.0), torch.tensor(2.0))
    assert [size for size, _ in denoiser.network.calls] == [B]


class Mixing(nn.Module):
    """Answers otherwise for every text; remembers how many rows it was given."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def forward(self, sample, timesteps, text):
        self.rows.append(len(sample))
        return torch.sin(sample + text.pooled[:, :1, None, None])


@pytest.mark.parametrize("schedule_name", ["linear", "cosine", "flow"])
def test_the_interval_takes_effect_within_its_bounds_alone(schedule_name):
    """Bits of guidance everywhere inside, of no guidance and half the rows outside."""
    schedule = make_schedule(schedule_name)
    levels = schedule.sampling_sigmas(10)[:-1]
    low, high = levels[6].item(), levels[2].item()
    for interval, guided in [((0.0, 10_000.0), range(10)), ((low, high), range(2, 6)),
                             ((low, low * (1 + 1e-6)), ()), (None, range(10))]:  # fmt: skip
        network = Mixing()
        denoiser = Denoiser(network, schedule, prediction_type="v_prediction")
        options = {"negative": text_states(0.1), "guidance_rescale": 0.5}
        within = denoiser.denoise(
            text_states(0.3), **options, guidance_scale=3.0, guidance_interval=interval
        )
        everywhere = denoiser.denoise(text_states(0.3), **options, guidance_scale=3.0)
        nowhere = denoiser.denoise(text_states(0.3), **options, guidance_scale=1.0)
        for i, sigma in enumerate(levels):
            x = noisy(sigma)
            expected = everywhere if i in guided else nowhere
            network.rows.clear()
            assert torch.equal(within(x, sigma), expected(x, sigma))
            assert network.rows == [2 * B if i in guided else B] * 2
            assert not torch.equal(everywhere(x, sigma), nowhere(x, sigma))


def test_clip_sample_keeps_x_0_in_range():
    denoiser = make()
    sigma = denoiser.schedule.sigmas[400]
    denoise = denoiser.denoise(
        text_states(0.9), negative=text_states(0.0), guidance_scale=3.0, clip_sample=True
    )
    x_0 = denoise(noisy(sigma), sigma)
    torch.testing.assert_close(x_0, torch.ones_like(x_0))


@pytest.mark.parametrize("schedule_name", ["cosine", "flow"])
def test_epsilon_is_refused_where_the_schedule_ends_in_pure_noise(schedule_name):
    with pytest.raises(ValueError, match="use 'v_prediction'"):
        make(schedule_name, "epsilon")


def test_faults():
    with pytest.raises(ValueError, match="did you mean 'v_prediction'"):
        make(prediction_type="v_predicton")
    with pytest.raises(ValueError, match=r"guidance_scale 2\.0 needs"):
        make().denoise(text_states(0.0), guidance_scale=2.0)
    with pytest.raises(ValueError, match=r"got 1\.5"):
        make().denoise(text_states(0.0), guidance_rescale=1.5)
    with pytest.raises(ValueError, match=r"guidance_interval must be .* got 3 and 0\.3"):
        make().denoise(text_states(0.0), guidance_interval=(3.0, 0.3))
