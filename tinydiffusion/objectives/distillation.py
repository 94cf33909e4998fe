"""The distillation objective: one step of the student lands where several of the teacher do."""

from collections.abc import Mapping
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tinydiffusion.diffusion.denoiser import Denoiser
from tinydiffusion.diffusion.guidance import guide
from tinydiffusion.diffusion.noise import randn
from tinydiffusion.diffusion.weighting import spread_evenly
from tinydiffusion.objectives._pixels import to_float
from tinydiffusion.protocols import Batch, Generators, TextEncoder, TextStates


class DistillationObjective(nn.Module):
    """Squared error of x_0 from which one step of the student reaches where its teacher arrives.

    Progressive distillation, Salimans & Ho (2022), algorithm 2
    (https://arxiv.org/abs/2202.00512), in a single stage: the teacher takes `teacher_steps` of
    Euler's steps (DDIM's) for one of the student's, in place of two. Its guidance is learned too,
    as in Meng et al. (2023), section 3.1 (https://arxiv.org/abs/2210.03142), for one fixed scale:
    the student is sampled with `guidance_scale` 1, so a picture takes one evaluation a step.

    Sample with `euler`, and with the steps and spacing that are given here: no other noise levels
    are learned.

    Args:
        denoiser: The student, which begins as its teacher; its network is trained.
        text_encoder: Of both; it is frozen.
        teacher: A copy of the trained model; never changed.
        num_inference_steps: Steps of the student.
        spacing: Of its noise levels, see `Schedule.sampling_sigmas`.
        teacher_steps: Steps of the teacher for one of the student's, in [1, 100].
        guidance_scale: Of the teacher; 1 is off.

    Raises:
        ValueError: a number out of its range.
    """

    def __init__(
        self,
        *,
        denoiser: Denoiser,
        text_encoder: TextEncoder,
        teacher: Denoiser,
        num_inference_steps: int,
        spacing: str,
        teacher_steps: int = 5,
        guidance_scale: float = 3.0,
    ) -> None:
        super().__init__()
        if not 1 <= teacher_steps <= 100:
            raise ValueError(f"teacher_steps must be in [1, 100], got {teacher_steps}")
        if not 0 <= guidance_scale <= 1000:
            raise ValueError(f"guidance_scale must be in [0, 1000], got {guidance_scale}")
        self.denoiser = denoiser
        self.text_encoder = text_encoder
        cast(nn.Module, text_encoder).requires_grad_(False)
        self.teacher = teacher
        self.guidance_scale = guidance_scale
        sigmas = denoiser.schedule.sampling_sigmas(num_inference_steps * teacher_steps, spacing)
        # Row i: from the student's level i to its next one.
        self.sigmas: Float[Tensor, "S K_plus_1"] = sigmas.unfold(
            0, teacher_steps + 1, teacher_steps
        )

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
        sigmas = self.sigmas[steps].to(x_0.device)[..., None, None, None]
        x = x_0 + sigmas[:, 0] * randn(x_0.shape, generators, device=x_0.device)
        with torch.no_grad():
            text = self.text_encoder.encode(batch["caption"])
            empty = self.text_encoder.encode([""] * len(x))
            target = self._target(x, sigmas, text, empty)
        predicted = self.denoiser.to_x_0(x, sigmas[:, 0].flatten(), text)
        return (predicted.float() - target).square().mean(), {}

    def _target(
        self,
        x: Float[Tensor, "B C H W"],
        sigmas: Float[Tensor, "B K_plus_1 1 1 1"],
        text: TextStates,
        empty: TextStates,
    ) -> Float[Tensor, "B C H W"]:
        """The x_0 with which one step from the first level ends where the teacher's steps do."""
        arrived = x
        for sigma, sigma_next in pairwise(sigmas.unbind(1)):
            x_0 = self._teacher_x_0(arrived, sigma.flatten(), text, empty)
            arrived = x_0 + sigma_next / sigma * (arrived - x_0)  # Euler's step
        ratio = sigmas[:, -1] / sigmas[:, 0]
        return (arrived - ratio * x) / (1 - ratio)  # algorithm 2, divided by the signal factor

    def _teacher_x_0(
        self,
        x: Float[Tensor, "B C H W"],
        sigma: Float[Tensor, "B"],
        text: TextStates,
        empty: TextStates,
    ) -> Float[Tensor, "B C H W"]:
        if self.guidance_scale == 1:
            return self.teacher.to_x_0(x, sigma, text).clamp(-1, 1)
        both = TextStates(*(torch.cat(parts) for parts in zip(text, empty, strict=True)))
        x_0 = self.teacher.to_x_0(torch.cat([x, x]), torch.cat([sigma, sigma]), both)
        with_text, without = x_0.chunk(2)
        return guide(with_text, without, self.guidance_scale).clamp(-1, 1)


PLUGIN = DistillationObjective
