"""The distillation objective: one step of the student lands where several of the teacher do."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tinydiffusion.abilities import PrescribesSampling
from tinydiffusion.diffusion.denoiser import Denoiser
from tinydiffusion.diffusion.noise import randn
from tinydiffusion.diffusion.schedule import Schedule
from tinydiffusion.diffusion.weighting import spread_evenly
from tinydiffusion.pictures.units import to_float
from tinydiffusion.protocols import Batch, Generators, TextEncoder, TextStates
from tinydiffusion.registry import suggest

SAMPLERS = ["ddpm", "euler"]


class DistillationObjective(nn.Module, PrescribesSampling):
    """Squared error of x_0 from which one step of the student reaches where its teacher arrives.

    Progressive distillation, Salimans & Ho (2022), algorithm 2
    (https://arxiv.org/abs/2202.00512), in a single stage: the teacher takes `teacher_steps` of
    Euler's steps (DDIM's) for one of the student's, in place of two. Its guidance is learned too,
    as in Meng et al. (2023), section 3.1 (https://arxiv.org/abs/2210.03142), for one fixed scale:
    the student is sampled with `guidance_scale` 1, so a picture takes one evaluation a step.

    Where the student is sampled by `ddpm`, the teacher goes on to the lower noise level from which
    that sampler adds noise, much as in section 3.3 of Meng et al. What an early step got wrong can
    then be mended by a later one.

    Sample with the sampler, steps and spacing that are given here: no other noise levels are
    learned.

    Args:
        denoiser: The student, which begins as its teacher; its network is trained.
        text_encoder: Of both; it is frozen.
        teacher: A copy of the trained model; never changed.
        num_inference_steps: Steps of the student.
        spacing: Of its noise levels, see `Schedule.sampling_sigmas`.
        sampler: Of the student, "ddpm" or "euler".
        teacher_steps: Steps of the teacher from one of the student's levels to the next one, in
            [1, 100]; to a lower one as many more as it takes longer.
        guidance_scale: Of the teacher; 1 is off.

    Raises:
        ValueError: a number out of its range, or an unknown sampler.
    """

    def __init__(
        self,
        *,
        denoiser: Denoiser,
        text_encoder: TextEncoder,
        teacher: Denoiser,
        num_inference_steps: int,
        spacing: str,
        sampler: str,
        teacher_steps: int = 5,
        guidance_scale: float = 3.0,
    ) -> None:
        super().__init__()
        if not 1 <= teacher_steps <= 100:
            raise ValueError(f"teacher_steps must be in [1, 100], got {teacher_steps}")
        if sampler not in SAMPLERS:
            raise ValueError(
                f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}"
                f"{suggest(sampler, SAMPLERS)}"
            )
        if not 0 <= guidance_scale <= 1000:
            raise ValueError(f"guidance_scale must be in [0, 1000], got {guidance_scale}")
        self.denoiser = denoiser
        self.text_encoder = text_encoder
        cast(nn.Module, text_encoder).requires_grad_(False)
        self.teacher = teacher
        self.guidance_scale = guidance_scale
        schedule = denoiser.schedule
        sigmas = schedule.sampling_sigmas(num_inference_steps, spacing)
        # Before ddpm adds noise, the share (sigma_next / sigma)^2 of the noise is left.
        ends = sigmas[1:] if sampler == "euler" else sigmas[1:] ** 2 / sigmas[:-1]
        self.sigmas = [
            _teacher_sigmas(schedule, *levels, teacher_steps)
            for levels in zip(sigmas[:-1], sigmas[1:], ends, strict=True)
        ]
        """The teacher's levels during each of the student's steps."""

    @staticmethod
    def prescribed_sampling(options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the only sampling settings that a student learns; guidance is its teacher's."""
        learned = {"sampler": "sampler", "steps": "num_inference_steps", "spacing": "spacing"}
        taught = {key: options[name] for key, name in learned.items() if name in options}
        return {**taught, "guidance_scale": 1.0}

    def train(self, mode: bool = True) -> "DistillationObjective":
        """Itself, in that mode but for teacher and text encoder: they answer without dropout."""
        super().train(mode)
        self.teacher.eval()
        cast(nn.Module, self.text_encoder).eval()
        return self

    def loss(
        self, batch: Batch, generators: Generators
    ) -> tuple[Float[Tensor, ""], Mapping[str, float | Tensor]]:
        """The mean squared error of x_0 over the batch; nothing else is logged.

        Args:
            batch: Pictures uint8 on the objective's device, and their captions.
            generators: One per picture, on the CPU.
        """
        x_0 = to_float(batch["image"])
        steps = (spread_evenly(batch["position"]) * len(self.sigmas)).long()
        sigma = torch.stack([levels[0] for levels in self.sigmas])[steps].to(x_0.device)
        x = x_0 + sigma.view(-1, 1, 1, 1) * randn(x_0.shape, generators, device=x_0.device)
        with torch.no_grad():
            text = self.text_encoder.encode(batch["caption"])
            empty = self.text_encoder.encode([""])
            target = torch.empty_like(x)
            for step in steps.unique().tolist():
                rows = (steps == step).nonzero().flatten().to(x.device)
                target[rows] = self._target(x[rows], self.sigmas[step], text.rows(rows), empty)
        predicted = self.denoiser.to_x_0(x, sigma, text)
        return (predicted.float() - target).square().mean(), {}

    def _target(
        self,
        x: Float[Tensor, "B C H W"],
        sigmas: Float[Tensor, "K_plus_1"],
        text: TextStates,
        empty: TextStates,
    ) -> Float[Tensor, "B C H W"]:
        """The x_0 with which one step from the first level ends where the teacher's steps do."""
        denoise = self.teacher.denoise(
            text,
            negative=empty.map(lambda part: part.expand(len(x), *part.shape[1:])),
            guidance_scale=self.guidance_scale,
            clip_sample=True,
        )
        arrived = x
        for sigma, sigma_next in pairwise(sigmas.to(x.device)):
            x_0 = denoise(arrived, sigma)
            arrived = x_0 + sigma_next / sigma * (arrived - x_0)  # Euler's step
        ratio = sigmas[-1] / sigmas[0]
        return (arrived - ratio * x) / (1 - ratio)  # algorithm 2, divided by the signal factor


def _teacher_sigmas(
    schedule: Schedule,
    sigma: Float[Tensor, ""],
    sigma_next: Float[Tensor, ""],
    end: Float[Tensor, ""],
    steps: int,
) -> Float[Tensor, "K_plus_1"]:
    """Levels from `sigma` to `end`, evenly in time: `steps` as far as `sigma_next`, and so on."""
    start, following, last = (_time_of(schedule, level) for level in (sigma, sigma_next, end))
    count = round(steps * (start - last) / (start - following))
    between = schedule.sigma_of(torch.linspace(start, last, count + 1)[1:-1])
    return torch.cat([sigma[None], between, end[None]])


def _time_of(schedule: Schedule, sigma: Float[Tensor, ""]) -> float:
    """The timestep of a noise level; that of no noise is one below the cleanest."""
    return schedule.timestep_of(sigma).item() if sigma > 0 else -1.0


PLUGIN = DistillationObjective
