"""Proves the student's target equal to the paper's formula and to where the teacher arrives."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import nn

from tinydiffusion.diffusion.denoiser import Denoiser
from tinydiffusion.diffusion.noise import picture_generators, randn
from tinydiffusion.diffusion.schedule import make_schedule
from tinydiffusion.objectives.distillation import DistillationObjective
from tinydiffusion.protocols import Objective, TextStates
from tinydiffusion.samplers.ddpm import sample_ddpm
from tinydiffusion.samplers.euler import sample_euler

BATCH, STEPS = 12, 4


class Mixture(nn.Module):
    """A network whose answer depends on picture, time and text, not linearly."""

    def __init__(self, scale: float = 0.3) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.dropout = nn.Dropout(0.5)

    def forward(self, sample, timesteps, text):
        told = text.pooled.mean(dim=1) + timesteps / 1000
        return self.dropout(torch.tanh(self.scale * sample + told.view(-1, 1, 1, 1)))


class Length(nn.Module):
    """A text encoder that tells how long a caption is."""

    hidden_size = pooled_size = 4
    max_length = 2
    frozen = False

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4) / 50)

    @classmethod
    def from_captions(cls, captions, **options):
        raise AssertionError("an objective asks a text encoder for encode() only")

    def tokenize(self, captions):
        raise AssertionError("an objective asks a text encoder for encode() only")

    def config(self):
        raise AssertionError("an objective asks a text encoder for encode() only")

    def encode(self, captions):
        lengths = torch.tensor([float(len(caption)) for caption in captions])
        pooled = lengths[:, None] * self.weight
        mask = torch.ones(len(captions), 2, dtype=torch.bool)
        return TextStates(pooled[:, None].expand(-1, 2, -1), mask, pooled)


def objective(student_scale=0.3, schedule="flow", prediction_type="flow", **options):
    noise_levels = make_schedule(schedule)
    teacher = Denoiser(Mixture(), noise_levels, prediction_type=prediction_type)
    student = copy.deepcopy(teacher)
    student.network.scale.data.fill_(student_scale)
    return DistillationObjective(
        denoiser=student,
        text_encoder=Length(),  # pyright: ignore[reportArgumentType]
        teacher=teacher.requires_grad_(False),
        num_inference_steps=STEPS,
        **{"spacing": "trailing", "sampler": "euler", **options},
    ).train()


def batch(first=0, count=BATCH):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (BATCH, 3, 4, 4), generator=generator, dtype=torch.uint8)
    chosen = slice(first, first + count)
    return {
        "image": images[chosen],
        "caption": [f"a {'very ' * i}red circle" for i in range(BATCH)][chosen],
        "id": [str(i) for i in range(BATCH)][chosen],
        "position": list(range(BATCH))[chosen],
    }


def loss(taught, first=0, count=BATCH):
    return taught.loss(batch(first, count), picture_generators(5, first, count))[0]


def test_it_is_an_objective():
    assert isinstance(objective(), Objective)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("i", range(STEPS))
def test_one_step_with_the_target_ends_where_the_teachers_sampler_does(i, guidance_scale):
    """By `sample_euler` over the levels between two of the student's, as the pipeline calls it."""
    taught = objective(teacher_steps=5, guidance_scale=guidance_scale)
    taught.teacher.network.eval()
    text, empty = (taught.text_encoder.encode(c) for c in (["a red circle"] * 3, [""] * 3))
    sigmas = make_schedule("flow").sampling_sigmas(STEPS)
    between = make_schedule("flow").sampling_sigmas(5 * STEPS)[5 * i : 5 * i + 6]
    assert between[0] == sigmas[i]
    assert between[-1] == sigmas[i + 1]
    x = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * sigmas[i]
    denoise = taught.teacher.denoise(
        text, negative=empty, guidance_scale=guidance_scale, clip_sample=True
    )
    arrived = x
    for sigma, sigma_next in pairwise(between):
        x_0 = denoise(arrived, sigma)
        arrived = x_0 + sigma_next / sigma * (arrived - x_0)
    if i == STEPS - 1:  # ends in 0, as a sampler demands
        none = [torch.Generator()] * 3
        torch.testing.assert_close(sample_euler(denoise, x, between, generators=none), arrived)
    torch.testing.assert_close(taught.sigmas[i], between, rtol=1e-4, atol=0)
    target = taught._target(x, taught.sigmas[i], text, taught.text_encoder.encode([""]))
    ratio = sigmas[i + 1] / sigmas[i]
    torch.testing.assert_close(target + ratio * (x - target), arrived, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("i", range(STEPS))
def test_a_step_of_ddpm_with_the_target_adds_noise_to_where_the_teacher_arrives(i):
    """By `sample_ddpm` from a level to the next one, and back to what it was before the noise."""
    taught = objective(sampler="ddpm", teacher_steps=5, guidance_scale=1.0)
    taught.teacher.network.eval()
    text, empty = (taught.text_encoder.encode(c) for c in (["a red circle"] * 3, [""]))
    sigma, sigma_next = make_schedule("flow").sampling_sigmas(STEPS)[i : i + 2]
    x = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * sigma
    levels = taught.sigmas[i]
    assert levels[0] == sigma
    torch.testing.assert_close(levels[-1], sigma_next**2 / sigma)
    arrived, denoise = x, taught.teacher.denoise(text, clip_sample=True)
    for first, second in pairwise(levels):
        x_0 = denoise(arrived, first)
        arrived = x_0 + second / first * (arrived - x_0)
    target = taught._target(x, levels, text, empty)
    answers = iter([target, torch.zeros_like(x)])  # a last step to 0, as a sampler demands
    seen = []

    def remember(x, sigma):
        seen.append(x)
        return next(answers)

    down = torch.tensor([sigma, sigma_next, 0.0]) if sigma_next > 0 else torch.tensor([sigma, 0.0])
    last = sample_ddpm(remember, x, down, generators=picture_generators(7, 0, 3))
    if sigma_next == 0:
        torch.testing.assert_close(last, arrived, rtol=1e-4, atol=1e-4)
        return
    noise = randn(x.shape, picture_generators(7, 0, 3))
    added = (sigma_next**2 - levels[-1] ** 2).sqrt() * noise
    torch.testing.assert_close(seen[1], arrived + added, rtol=1e-4, atol=1e-4)


def test_the_teacher_takes_as_many_more_steps_as_ddpm_goes_further():
    counts = [len(levels) - 1 for levels in objective(sampler="ddpm", teacher_steps=4).sigmas]
    assert counts == [16, 8, 6, 4]  # of time 1 to 0, 0.75 to 0.25, 0.5 to 0.1, 0.25 to 0
    for levels in objective(sampler="ddpm", teacher_steps=4).sigmas:
        time = levels / (1 + levels)
        torch.testing.assert_close(time.diff(), time.diff()[:1].expand(len(time) - 1),
                                   rtol=0.03, atol=1e-4)  # fmt: skip


def test_two_teacher_steps_give_the_papers_target():
    """Algorithm 2 of Salimans & Ho (2022) with the steps of diffusers' DDIM, on its alphas."""
    taught = objective(schedule="cosine", prediction_type="v_prediction", teacher_steps=2,
                       guidance_scale=1.0)  # fmt: skip
    taught.teacher.network.eval()
    schedule = taught.denoiser.schedule
    text = taught.text_encoder.encode(["a red circle"] * 3)
    i = 1
    sigma = taught.sigmas[i][0]
    levels = schedule.timestep_of(taught.sigmas[i]).round().long()
    alphas = schedule.alphas_cumprod[levels]
    before = torch.cat([torch.ones(1), schedule.alphas_cumprod[:-1]])
    betas = 1 - schedule.alphas_cumprod / before
    ddim: Any = DDIMScheduler(trained_betas=betas.numpy(), prediction_type="v_prediction")
    x = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * sigma
    z = z_t = alphas[0].sqrt() * x
    ddim.set_timesteps(STEPS * 2, device="cpu")
    for level, following in pairwise(levels):
        ddim.num_inference_steps = 1000 // int(level - following)  # the step that it takes
        output = taught.teacher.network(z, level.float().expand(3), text)
        z = ddim.step(output, int(level), z, use_clipped_model_output=True).prev_sample
    a_t, s_t = alphas[0].sqrt(), (1 - alphas[0]).sqrt()
    a_after, s_after = alphas[2].sqrt(), (1 - alphas[2]).sqrt()
    paper = (z - s_after / s_t * z_t) / (a_after - s_after / s_t * a_t)
    target = taught._target(x, taught.sigmas[i], text, taught.text_encoder.encode([""]))
    torch.testing.assert_close(target, paper, rtol=1e-3, atol=1e-3)


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    taught = objective(teacher_steps=1, guidance_scale=1.0)
    taught.denoiser.network.dropout.p = 0.0
    clamped = taught.teacher.denoise
    taught.teacher.denoise = lambda *args, **options: clamped(
        *args, **{**options, "clip_sample": False}
    )
    assert loss(taught) < 1e-7
    assert loss(objective(0.5, teacher_steps=1, guidance_scale=1.0)) > 1e-3


def test_the_mean_over_a_batch_is_the_mean_over_its_parts():
    taught = objective(0.5).eval()
    whole = loss(taught)
    parts = [loss(taught, first, 4) for first in range(0, BATCH, 4)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_only_the_students_network_learns():
    taught = objective(0.5)
    trained = [name for name, p in taught.named_parameters() if p.requires_grad]
    assert trained == ["denoiser.network.scale"]
    before = {name: p.clone() for name, p in taught.named_parameters()}
    loss(taught).backward()
    torch.optim.SGD(taught.parameters(), lr=0.1).step()
    changed = [name for name, p in taught.named_parameters() if not torch.equal(p, before[name])]
    assert changed == trained


def test_the_teacher_answers_without_dropout_while_the_student_trains():
    taught = objective(0.5)
    assert taught.denoiser.network.training
    assert not taught.teacher.network.training
    assert not taught.text_encoder.training
    text = taught.text_encoder.encode(["a red circle"])
    x, sigma = torch.ones(1, 3, 4, 4), torch.ones(1)
    answers = [taught.teacher.to_x_0(x, sigma, text) for _ in range(2)]
    assert torch.equal(*answers)


def test_every_step_of_the_student_is_taught():
    taught = objective()
    seen = []

    def remember(x, sigmas, text, empty):
        seen.append((len(x), sigmas))
        return x

    taught._target = remember
    loss(taught)
    counts = [count for count, _ in seen]
    assert sum(counts) == BATCH
    assert all(abs(count - BATCH / STEPS) <= 1 for count in counts)
    for (_, levels), expected in zip(seen, taught.sigmas, strict=True):
        assert torch.equal(levels, expected)


@pytest.mark.parametrize("sampler", ["ddpm", "euler"])
def test_it_learns_what_the_teacher_does(sampler):
    taught = objective(0.6, teacher_steps=3, guidance_scale=1.0, sampler=sampler)
    taught.denoiser.network.dropout.p = 0.0
    optimizer = torch.optim.Adam(taught.denoiser.parameters(), lr=0.02)
    first = loss(taught).item()
    for _ in range(40):
        optimizer.zero_grad()
        value = loss(taught)
        value.backward()
        optimizer.step()
    assert value < 0.5 * first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_steps": 0}, r"teacher_steps must be in \[1, 100\], got 0"),
        ({"teacher_steps": 101}, "got 101"),
        ({"teacher_steps": 100, "spacing": "even"}, "unknown spacing 'even'"),
        ({"sampler": "eular"}, r"sampler must be one of ddpm, euler, got 'eular'.*euler"),
        ({"guidance_scale": float("nan")}, r"guidance_scale must be in \[0, 1000\], got nan"),
        ({"guidance_scale": -1.0}, "got -1.0"),
    ],
)
def test_what_is_out_of_range_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        objective(**options)
