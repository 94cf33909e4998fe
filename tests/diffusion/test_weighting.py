"""Loss weights equal the formulas of their papers; drawn timesteps follow their densities."""

import pytest
import torch

from tinydiffusion.diffusion.prediction import PREDICTION_TYPES
from tinydiffusion.diffusion.schedule import make_schedule
from tinydiffusion.diffusion.weighting import WEIGHTINGS, loss_weights, spread_evenly, timesteps_of

stats = pytest.importorskip("scipy.stats")

EVERY = torch.arange(1000)


def factors(name="linear"):
    a, s = make_schedule(name).coefficients(EVERY)
    return a, s, (a / s) ** 2


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_equals_the_paper(gamma):
    a, s, snr = factors()
    capped = snr.clamp_max(gamma)
    expected = {
        "epsilon": capped / snr,
        "v_prediction": capped / (snr + 1),
        "sample": capped,
    }
    for prediction_type, weight in expected.items():
        actual = loss_weights("min_snr", prediction_type, a, s, gamma=gamma)
        torch.testing.assert_close(actual, weight)


def test_min_snr_of_flow_weighs_the_same_error_of_x_0():
    a, s, snr = factors("flow")
    torch.testing.assert_close(
        loss_weights("min_snr", "flow", a, s), snr.clamp_max(5) * s**2, rtol=1e-5, atol=0
    )


def test_min_snr_caps_clean_pictures_from_above():
    a, s, snr = factors()
    weight = loss_weights("min_snr", "epsilon", a, s).flatten()
    clean = snr.flatten() > 5
    assert (weight[clean] < 1).all()
    torch.testing.assert_close(weight[~clean], torch.ones_like(weight[~clean]))


def test_edm_is_one_in_the_space_of_v_with_unit_data():
    a, s, _ = factors()
    weight = loss_weights("edm", "v_prediction", a, s, sigma_data=1.0)
    torch.testing.assert_close(weight, torch.ones_like(weight), rtol=1e-4, atol=0)


def test_edm_equals_table_1_in_the_space_of_x_0():
    a, s, _ = factors()
    sigma = s / a
    expected = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    torch.testing.assert_close(loss_weights("edm", "sample", a, s), expected)


@pytest.mark.parametrize("name", ["linear", "cosine", "flow"])
def test_velocity_is_one_for_the_velocity_and_its_error_for_x_0(name):
    a, s, _ = factors(name)
    noisy = s.flatten() >= 0.1
    of_flow = loss_weights("velocity", "flow", a, s)[noisy]
    torch.testing.assert_close(of_flow, torch.ones_like(of_flow))
    x_0, guess, noise = 0.3, 0.5, -1.2
    x_t = a * x_0 + s * noise
    error = (noise - x_0) - ((x_t - a * guess) / s - guess)
    weighted = loss_weights("velocity", "sample", a, s) * (guess - x_0) ** 2
    torch.testing.assert_close(weighted[noisy], error[noisy] ** 2, rtol=1e-3, atol=0)


def test_velocity_grows_no_more_on_clean_pictures():
    a, s, _ = factors("flow")
    weight = loss_weights("velocity", "sample", a, s).flatten()
    assert weight.max() == pytest.approx(100)
    assert (weight[s.flatten() < 0.1] == weight.max()).all()


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_none_is_one(prediction_type):
    a, s, _ = factors()
    torch.testing.assert_close(loss_weights("none", prediction_type, a, s), torch.ones_like(a))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("name", ["cosine", "flow"])
def test_weights_are_finite_where_no_signal_is_left(weighting, name):
    a, s, _ = factors(name)
    assert loss_weights(weighting, "v_prediction", a, s).isfinite().all()


def draw(density, batch_size, seed=0, stratified=True, **options):
    first = 977 * seed  # of the positions
    positions = range(first, first + batch_size)
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(batch_size, generator=generator, dtype=torch.float64)
    u = spread_evenly(positions) if stratified else u
    return timesteps_of(u, density, 1000, **options)


@pytest.mark.parametrize("stratified", [False, True])
def test_uniform_timesteps_follow_their_distribution(stratified):
    timesteps = draw("uniform", 5000, stratified=stratified)
    assert timesteps.min() >= 0
    assert timesteps.max() <= 999
    middles = (timesteps.double() + 0.5) / 1000
    assert stats.kstest(middles.numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.8, 0.8)])
def test_logit_normal_timesteps_follow_their_distribution(stratified, mean, std):
    timesteps = draw("logit_normal", 5000, stratified=stratified, mean=mean, std=std)
    logits = torch.logit((timesteps.double() + 0.5) / 1000)
    assert stats.kstest(logits.numpy(), stats.norm(mean, std).cdf).pvalue > 0.01


def test_timesteps_are_the_quantiles_of_their_density():
    u = (torch.arange(50, dtype=torch.float64) + 0.525) / 50
    assert timesteps_of(u, "uniform", 1000).tolist() == list(range(10, 1000, 20))
    logits = torch.logit((timesteps_of(u, "logit_normal", 1000, mean=0.5, std=1.5) + 0.5) / 1000)
    parts = torch.from_numpy(stats.norm(0.5, 1.5).cdf(logits))
    torch.testing.assert_close(parts, u, atol=2e-3, rtol=0)


@pytest.mark.parametrize("first", [0, 1, 977, 10**9, 2**62])
@pytest.mark.parametrize("count", [1, 7, 64, 1000])
def test_any_consecutive_positions_are_spread_evenly(first, count):
    """The gaps of N points on the circle have at most three lengths, none above 2.7 / N."""
    u = spread_evenly(range(first, first + count)).sort().values
    assert u.min() >= 0
    assert u.max() < 1
    gaps = torch.cat([u, u[:1] + 1]).diff()
    assert gaps.max() < 2.7 / count or count == 1
    assert len({round(gap, 9) for gap in gaps.tolist()}) <= 3


def test_stratified_mean_is_steadier():
    def spread(stratified):
        means = [
            draw("uniform", 32, seed=i, stratified=stratified).double().mean() for i in range(50)
        ]
        return torch.stack(means).std()

    assert spread(True) < spread(False) / 3


def test_faults():
    one = torch.ones(1, 1, 1, 1)
    with pytest.raises(ValueError, match="did you mean 'min_snr'"):
        loss_weights("minsnr", "epsilon", one, one)
    with pytest.raises(ValueError, match="unknown time density 'lognormal'"):
        draw("lognormal", 4)
    with pytest.raises(ValueError, match=r"in \(0, 20\], got 0"):
        draw("logit_normal", 4, std=0.0)
