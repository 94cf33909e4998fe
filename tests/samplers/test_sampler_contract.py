"""Every registered sampler keeps the contract of `protocols.Sampler`."""

import pytest
import torch

from tinydiffusion.diffusion.noise import picture_generators, randn
from tinydiffusion.diffusion.schedule import make_schedule
from tinydiffusion.registry import load, names

SCHEDULE = make_schedule("cosine")
OPTIONS = {"diffusers": {"scheduler": "DDPMScheduler", "train_sigmas": SCHEDULE.sigmas}}
STOCHASTIC = {"ddpm": {}, "ddim": {"eta": 1.0}, "diffusers": {}}


def denoise(x, sigma):
    return torch.tanh(x / (1 + sigma))


def sample(name, first=0, count=3, steps=6, dtype=torch.float32, **options):
    sigmas = SCHEDULE.sampling_sigmas(steps)
    x = sigmas[0] * randn((count, 3, 4, 4), picture_generators(0, first, count), dtype=dtype)
    generators = picture_generators(100, first, count)
    options = OPTIONS.get(name, {}) | options
    return load("sampler", name)(denoise, x, sigmas.to(dtype), generators=generators, **options)


@pytest.mark.parametrize("name", names("sampler"))
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_shape_dtype_and_finite(name, steps):
    pictures = sample(name, steps=steps)
    assert pictures.shape == (3, 3, 4, 4)
    assert pictures.dtype == torch.float32
    assert pictures.isfinite().all()


@pytest.mark.parametrize("name", names("sampler"))
def test_keeps_float64(name):
    assert sample(name, dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize("name", names("sampler"))
def test_same_generators_same_pictures(name):
    torch.testing.assert_close(sample(name), sample(name), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "options"), STOCHASTIC.items())
def test_stochastic_ones_use_the_generators(name, options):
    sigmas = SCHEDULE.sampling_sigmas(6)
    x = sigmas[0] * randn((1, 3, 4, 4), picture_generators(0, 0, 1))
    run = load("sampler", name)
    first, second = (
        run(
            denoise,
            x,
            sigmas,
            generators=picture_generators(seed, 0, 1),
            **OPTIONS.get(name, {}),
            **options,
        )
        for seed in (1, 2)
    )
    assert not first.allclose(second)


@pytest.mark.parametrize("name", names("sampler"))
def test_picture_does_not_depend_on_its_batch(name):
    options = STOCHASTIC.get(name, {})
    together = sample(name, count=4, **options)
    parts = [sample(name, first=0, count=1, **options), sample(name, first=1, count=3, **options)]
    torch.testing.assert_close(torch.cat(parts), together, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", names("sampler"))
@pytest.mark.parametrize("sigmas", [[3.0, 1.0], [1.0, 3.0, 0.0], [3.0, 3.0, 0.0], [0.0]])
def test_refuses_sigmas_that_do_not_fall_to_zero(name, sigmas):
    with pytest.raises(ValueError, match="fall strictly and end in 0"):
        load("sampler", name)(
            denoise,
            torch.zeros(1, 3, 4, 4),
            torch.tensor(sigmas),
            generators=picture_generators(0, 0, 1),
            **OPTIONS.get(name, {}),
        )


def test_eta_outside_its_range():
    with pytest.raises(ValueError, match=r"eta must be in \[0, 1\], got 2"):
        sample("ddim", eta=2.0)
