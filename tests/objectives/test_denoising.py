"""Proves the denoising loss equal to one by hand, and caption dropout alive at every step."""

import math

import pytest
import torch
from denoising_toys import BATCH, Guesser, batch, generators, make

from tinydiffusion.diffusion.denoiser import Denoiser
from tinydiffusion.diffusion.schedule import make_schedule
from tinydiffusion.networks.unet import UNet
from tinydiffusion.objectives.denoising import DenoisingObjective
from tinydiffusion.pictures.units import to_float
from tinydiffusion.protocols import Objective
from tinydiffusion.text_encoders.clip import ClipTextEncoder


def signal_and_noise(schedule, timesteps):
    """Factors of x_0 and noise in x_t, written down anew."""
    steps = [int(t) for t in timesteps]
    if schedule == "flow":
        pairs = [(1 - (t + 1) / 1000, (t + 1) / 1000) for t in steps]
    else:
        betas = [1e-4 + (0.02 - 1e-4) * t / 999 for t in range(1000)]
        kept = [math.prod(1 - beta for beta in betas[: t + 1]) for t in steps]
        pairs = [(math.sqrt(share), math.sqrt(1 - share)) for share in kept]
    factors = torch.tensor(pairs).view(-1, 2, 1, 1, 1)
    return factors[:, 0], factors[:, 1]


TARGETS = {
    "epsilon": lambda x_0, noise, a, s: noise,
    "sample": lambda x_0, noise, a, s: x_0,
    "v_prediction": lambda x_0, noise, a, s: a * noise - s * x_0,
    "flow": lambda x_0, noise, a, s: noise - x_0,
}


@pytest.mark.parametrize(
    ("schedule", "prediction_type"),
    [
        ("linear", "epsilon"), ("linear", "sample"), ("linear", "v_prediction"),
        ("flow", "sample"), ("flow", "flow"),
    ],
)  # fmt: skip
def test_loss_equals_that_by_hand(schedule, prediction_type):
    objective = make(schedule, prediction_type, caption_dropout_prob=0.0)
    loss, scalars = objective.loss(batch(), generators())
    network = objective.denoiser.network
    assert isinstance(objective, Objective)
    assert scalars == {}

    x_0 = batch()["image"] / 255 * 2 - 1
    a, s = signal_and_noise(schedule, network.timesteps)
    noise = (network.x_t - a * x_0) / s
    noisy = network.timesteps > 100  # else the division blows rounding up
    assert noise[noisy].mean().abs() < 0.1
    assert 0.9 < noise[noisy].std() < 1.1
    lengths = torch.tensor([len(caption) / 50 for caption in batch()["caption"]])
    output = 0.5 * network.x_t + lengths.view(-1, 1, 1, 1)
    error = output - TARGETS[prediction_type](x_0, noise, a, s)
    torch.testing.assert_close(loss, error.square().mean(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_error_of_the_preview_is_added(weight):
    plain, _ = make(caption_dropout_prob=0.0).loss(batch(), generators())
    objective = make(network=Guesser, caption_dropout_prob=0.0, preview_weight=weight)
    loss, scalars = objective.loss(batch(), generators())
    x_0 = batch()["image"] / 255 * 2 - 1
    small = x_0.unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean(dim=(3, 5))
    lengths = torch.tensor([len(caption) / 50 for caption in batch()["caption"]])
    error = (lengths.view(-1, 1, 1, 1) - small).square().mean()
    torch.testing.assert_close(loss, plain + weight * error)
    if weight:
        torch.testing.assert_close(scalars["preview_loss"], error)
        torch.testing.assert_close(scalars["denoising_loss"], plain)
    else:
        assert scalars == {}


def test_preview_learns_where_the_words_put_things():
    torch.manual_seed(0)
    captions = ["white is left of black", "white is right of black"] * 4
    text_encoder = ClipTextEncoder.from_captions(captions, width=32, layers=1, heads=1)
    options = {"text_dim": 32, "pooled_dim": 32, "channels": (32,), "attention_levels": ()}
    network = UNet(**options, layers_per_block=1, preview_size=2)
    denoiser = Denoiser(network, make_schedule("flow"), prediction_type="flow")
    objective = DenoisingObjective(denoiser=denoiser, text_encoder=text_encoder)
    left = torch.zeros(3, 4, 4, dtype=torch.uint8)
    left[:, :, :2] = 255
    images = torch.stack([left, left.flip(-1)] * 4)
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    for step in range(40):
        optimizer.zero_grad()
        examples = {"image": images, "caption": captions, "id": captions, "position": range(8)}
        objective.loss(examples, generators(step, 8))[0].backward()
        optimizer.step()
    told = network.preview(text_encoder.encode(captions[:2])).mean(dim=(1, 2))
    expected = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    torch.testing.assert_close(told.detach(), expected, atol=0.3, rtol=0)


def test_weighting_multiplies_each_pictures_error():
    """Min-SNR on epsilon is min(SNR, gamma) / SNR, Hang et al. (2023), section 3.4."""
    plain, weighted = make(), make(weighting="min_snr", gamma=2.0)
    capped = []
    for seed in range(12):
        one = {**batch(1), "position": [seed]}
        loss, _ = plain.loss(one, generators(seed, 1))
        a, s = signal_and_noise("linear", plain.denoiser.network.timesteps)
        snr = ((a / s) ** 2).item()
        capped.append(snr > 2)
        expected = loss * min(snr, 2.0) / snr
        actual, _ = weighted.loss(one, generators(seed, 1))
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=0)
    assert True in capped
    assert False in capped


@pytest.mark.parametrize(
    ("options", "lowest", "highest"),
    [
        ({}, 450, 550),
        ({"time_density": "logit_normal", "time_mean": 2.0, "time_std": 0.5}, 800, 950),
        ({"time_density": "logit_normal", "time_mean": -2.0, "time_std": 0.5}, 50, 200),
    ],
)
def test_time_density_reaches_the_network(options, lowest, highest):
    objective = make(**options)
    objective.loss(batch(200), generators(0, 200))
    assert lowest < objective.denoiser.network.timesteps.mean() < highest


@pytest.mark.parametrize("stratified", [False, True])
def test_stratified_timesteps_lie_evenly(stratified):
    objective = make(stratified=stratified)
    objective.loss(batch(20), generators(0, 20))
    gaps = objective.denoiser.network.timesteps.sort().values.diff()
    assert (gaps.max() < 2.7 * 50) == stratified


@pytest.mark.parametrize("cuts", [[16], [8, 8], [1] * 16, [4, 12]])
@pytest.mark.parametrize("every", [1, 2, 4])
def test_mean_over_the_parts_is_that_of_the_batch(cuts, every):
    """Whatever the parts: so several processes, or micro-batches, learn what one learns."""
    objective = make(caption_dropout_prob=0.5, network=Guesser, denoise_every=every)
    whole, _ = objective.loss(batch(), generators())
    total, first = 0.0, 0
    for size in cuts:
        here = slice(first, first + size)
        part = {key: values[here] for key, values in batch().items()}
        total += size / BATCH * objective.loss(part, generators()[here])[0]
        first += size
    torch.testing.assert_close(total, whole)


@pytest.mark.parametrize("cuts", [[1] * 16, [4, 12]])
def test_chosen_noise_does_not_depend_on_how_the_batch_is_cut(cuts):
    objective, first = make(noise_candidates=4), 0
    objective.loss(batch(), generators())
    whole = objective.denoiser.network.x_t
    for size in cuts:
        here = slice(first, first + size)
        part = {key: values[here] for key, values in batch().items()}
        objective.loss(part, generators()[here])
        assert torch.equal(objective.denoiser.network.x_t, whole[here])
        first += size


def test_the_nearest_noise_is_added():
    """Same levels and captions as with one candidate, and noise that is nearer to the picture."""
    seen = {}
    for number in (1, 16):
        objective = make("flow", "flow", noise_candidates=number)
        loss, _ = objective.loss(batch(), generators())
        assert torch.equal(loss, objective.loss(batch(), generators())[0])
        network = objective.denoiser.network
        seen[number] = network.x_t, network.timesteps, objective.text_encoder.encoded[-1]
    (plain, timesteps, captions), (nearest, same_timesteps, same_captions) = seen.values()
    assert torch.equal(timesteps, same_timesteps)
    assert captions == same_captions
    x_0 = to_float(batch()["image"])
    a, s = make_schedule("flow").coefficients(timesteps.long())
    noises = [(x_t - a * x_0) / s for x_t in (plain, nearest)]
    distances = [(noise - x_0).square().sum((1, 2, 3)).mean() for noise in noises]
    assert distances[1] < 0.8 * distances[0]


def test_one_candidate_is_the_noise_of_before():
    """Loss and x_t of a batch by the draws as they have always been: two numbers, then noise."""
    objective = make("flow", "flow", caption_dropout_prob=0.0)
    objective.loss(batch(), generators())
    network, drawn = objective.denoiser.network, []
    for generator in generators():
        torch.rand(2, generator=generator)
        drawn.append(torch.randn(3, 4, 4, generator=generator))
    x_0, timesteps = to_float(batch()["image"]), network.timesteps.long()
    expected = make_schedule("flow").add_noise(x_0, torch.stack(drawn), timesteps)
    assert torch.equal(network.x_t, expected)


# ---- randomness ------------------------------------------------------------------------------


def test_same_generator_same_loss_and_nothing_else_matters():
    objective = make()
    losses = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        losses.append(objective.loss(batch(), generators(5))[0])
    assert torch.equal(*losses)
    assert not torch.equal(losses[0], objective.loss(batch(), generators(6))[0])


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    make().loss(batch(), generators())
    assert torch.equal(torch.get_rng_state(), before)


# ---- caption dropout -------------------------------------------------------------------------


def dropped(objective, captions, seed):
    """Places of the captions that were emptied; the others are checked to be as they were."""
    objective.loss({**batch(len(captions)), "caption": captions}, generators(seed, len(captions)))
    encoded = objective.text_encoder.encoded[-1]
    for caption, now in zip(captions, encoded, strict=True):
        assert now in (caption, "")
    return [i for i, now in enumerate(encoded) if now == ""]


@pytest.mark.parametrize("frozen", [False, True])
def test_other_captions_are_dropped_at_every_step(frozen):
    """A frozen encoder remembers its states; what is dropped must be drawn anew all the same."""
    objective = make(caption_dropout_prob=0.5, frozen=frozen)
    captions = batch()["caption"]
    steps = [tuple(dropped(objective, captions, seed)) for seed in range(20)]
    assert len(set(steps)) == 20
    assert {place for step in steps for place in step} == set(range(BATCH))


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_share_of_dropped_captions(probability):
    objective = make(caption_dropout_prob=probability)
    captions = batch(500)["caption"]
    share = sum(len(dropped(objective, captions, seed)) for seed in range(10)) / 5000
    assert share == pytest.approx(probability, abs=4 * math.sqrt(0.25 / 5000))


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (1.0, 200)])
def test_none_and_all_are_exact(probability, expected):
    objective = make(caption_dropout_prob=probability)
    for seed in range(5):
        assert len(dropped(objective, batch(200)["caption"], seed)) == expected


def test_dropout_does_not_move_noise_or_timesteps():
    networks = []
    for probability in (0.0, 1.0):
        objective = make(caption_dropout_prob=probability)
        objective.loss(batch(), generators())
        networks.append(objective.denoiser.network)
    assert torch.equal(networks[0].x_t, networks[1].x_t)
    assert not torch.equal(networks[0].text.pooled, networks[1].text.pooled)


@pytest.mark.parametrize("probability", [-0.1, 1.1])
def test_a_probability_outside_0_and_1_is_an_error(probability):
    with pytest.raises(ValueError, match=rf"caption_dropout_prob .* got {probability}"):
        make(caption_dropout_prob=probability)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preview_weight": -1.0}, r"preview_weight must be in \[0, 1000\], got -1"),
        ({"preview_weight": 1e9}, r"preview_weight must be in \[0, 1000\], got 1000000000"),
        ({"denoise_every": 0}, r"denoise_every must be in \[1, 64\], got 0"),
        ({"denoise_every": 65}, r"denoise_every must be in \[1, 64\], got 65"),
        ({"noise_candidates": 0}, r"noise_candidates must be in \[1, 64\], got 0"),
        ({"noise_candidates": 65}, r"noise_candidates must be in \[1, 64\], got 65"),
        ({"gamma": 0.0}, "gamma must be above 0, got 0"),
        ({"sigma_data": 1e-300}, r"sigma_data must be in \[0.001, 1000\], got 1e-300"),
        ({"time_std": 0.0}, r"std of the time density must be in \(0, 20\], got 0"),
        ({"time_mean": -1e9}, r"mean of the time density must be in \[-20, 20\], got -1"),
    ],
)
def test_numbers_out_of_their_range_are_errors_when_it_is_built(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"weighting": "min_snt"}, "min_snr"), ({"time_density": "unifrm"}, "uniform")],
)
def test_an_unknown_weighting_or_density_is_an_error_when_it_is_built(options, message):
    with pytest.raises(ValueError, match=f"did you mean {message!r}"):
        make(**options)


# ---- learning --------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_go_to_the_network_and_to_an_encoder_that_is_not_frozen(frozen):
    objective = make(frozen=frozen)
    loss, _ = objective.loss(batch(), generators())
    loss.backward()
    assert objective.denoiser.network.gain.grad != 0
    gradient = objective.text_encoder.weight.grad
    assert gradient is None if frozen else gradient.any()


def test_pictures_are_mapped_to_minus_one_and_one():
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    torch.testing.assert_close(to_float(image).flatten(), torch.tensor([-1.0, -0.6, 1.0]))
