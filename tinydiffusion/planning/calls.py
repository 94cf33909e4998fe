"""What a run does besides its steps, and how long that takes, from a few pictures."""

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tinydiffusion.build import build_evaluators
from tinydiffusion.config import EvaluationConfig, SamplingConfig
from tinydiffusion.diffusion.guidance import is_guided
from tinydiffusion.diffusion.noise import picture_generators
from tinydiffusion.evaluation.measurement import Measurement
from tinydiffusion.evaluation.on_the_way import Evaluation
from tinydiffusion.evaluation.sources import DatasetPictures, Pictures, eval_batch
from tinydiffusion.evaluation.target import BATCH, reference_pictures
from tinydiffusion.evaluation.validation_loss import ValidationLoss
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.planning.quantity import Quantity, Section
from tinydiffusion.planning.step import now
from tinydiffusion.planning.time import Call
from tinydiffusion.protocols import Dataset
from tinydiffusion.sampling.grids import SampleGrid
from tinydiffusion.survey import captions_of, evaluation_prompts
from tinydiffusion.training.trainer import Trainer

TOGETHER = 32
"""Pictures that are sampled together by default."""
SHORT = 2  # sampling steps that are timed


def measure_calls(
    trainer: Trainer, pipeline: TextToImage, reference: Dataset
) -> tuple[list[Call], Section]:
    """Measure how long the trainer's hooks take, and the work after the last step."""
    evaluation = pipeline.config.evaluation
    with trainer.learner.averaged() as modules:
        picture = sampling_seconds(pipeline, evaluation_prompts(reference, TOGETHER))
        measuring = _Measuring(evaluation, reference, trainer.batches.dataset)
        calls = [_call(hook, trainer, modules, picture, measuring) for hook in trainer.hooks]
        sampling = pipeline.config.sampling
        last = (len(sampling.prompts) or sampling.num_prompts) * picture
        after = {"last grid": Quantity(last, "seconds", "estimated")}
        if evaluation.metrics:
            images = evaluation.num_images
            seconds = images * picture + measuring.seconds(images)
            note = f"{images} pictures; without the last sums of the metrics"
            after["evaluation"] = Quantity(seconds, "seconds", "estimated", note)
    return [call for call in calls if call is not None], after


def _call(
    hook: Any, trainer: Trainer, modules: nn.Module, picture: float, measuring: "_Measuring"
) -> Call | None:
    """Describe when a hook is called and how long it takes; None for an unknown hook."""
    if isinstance(hook, SampleGrid):
        count, steps = len(hook.prompts), hook.pipeline.config.sampling.steps
        note = f"{count} pictures of {steps} steps"
        return Call("sample grids", hook.every, count * picture, note)
    if isinstance(hook, Evaluation):
        count = hook.num_images
        seconds = count * picture + measuring.seconds(count)
        return Call("metrics on the way", hook.every, seconds, f"{count} pictures")
    if isinstance(hook, ValidationLoss):  # writes nothing
        start = now(hook.device)
        hook(0, trainer.run_dir, modules)
        return Call("validation losses", hook.every, now(hook.device) - start)
    return None


def sampling_seconds(pipeline: TextToImage, prompts: Sequence[str]) -> float:
    """Estimate the seconds per picture, from a batch of these prompts in few steps.

    Args:
        pipeline: The model, in eval mode.
        prompts: As many prompts as are sampled together.
    """
    sampling = pipeline.config.sampling
    short = replace(sampling, steps=min(SHORT, sampling.steps))
    pipeline.generate(prompts, sampling=short)  # warm-up
    start = perf_counter()
    pipeline.generate(prompts, sampling=short)
    total = perf_counter() - start
    text = _encoding_seconds(pipeline, prompts)
    times = num_rows(pipeline, sampling) / num_rows(pipeline, short)
    return (text + max(0.0, total - text) * times) / len(prompts)


def num_evaluations(pipeline: TextToImage, sampling: SamplingConfig) -> int:
    """Count how often a sampler evaluates the clean picture."""
    return len(_levels_asked(pipeline, sampling))


def num_rows(pipeline: TextToImage, sampling: SamplingConfig) -> int:
    """Count the network's passes for each picture: two for each guided evaluation."""
    levels = _levels_asked(pipeline, sampling)
    if sampling.guidance_scale == 1:
        return len(levels)
    return sum(1 + is_guided(sigma, sampling.guidance_interval) for sigma in levels)


def _levels_asked(pipeline: TextToImage, sampling: SamplingConfig) -> list[Float[Tensor, ""]]:
    """List the noise levels at which a sampler evaluates the clean picture."""
    levels = []

    def denoise(x: Float[Tensor, "B C H W"], sigma: Float[Tensor, ""]) -> Float[Tensor, "B C H W"]:
        levels.append(sigma)
        return torch.zeros_like(x)

    sampler, sigmas = pipeline.prepare(sampling)
    x = torch.ones(1, pipeline.image_shape[0], 1, 1, device=sigmas.device) * sigmas[0]
    sampler(denoise, x, sigmas, generators=picture_generators(0, 0, 1))
    return levels


class _Measuring:
    """Estimates of how long the metrics take for their pictures, from a batch of each source."""

    def __init__(self, config: EvaluationConfig, reference: Dataset, train: Dataset) -> None:
        self.config, self.reference, self.train = config, reference, train

    def seconds(self, num_images: int) -> float:
        """Estimate the seconds for `num_images` generated pictures and their counterparts."""
        config = self.config
        measurement = Measurement(build_evaluators(config.metrics, config.options))
        seconds = 0.0
        if measurement.wanting("generated"):
            seconds += self._generated(measurement, num_images)
        reference = reference_pictures(self.reference, num_images)
        for pictures in (reference, DatasetPictures("train", self.train)):
            if measurement.wanting(pictures.source):
                seconds += _looking(measurement, pictures)
        return seconds

    def _generated(self, measurement: Measurement, num_images: int) -> float:
        """Estimate the seconds for generated pictures, with reference pictures in their place."""
        ids = range(min(BATCH, num_images, len(self.reference)))
        examples = [self.reference[i] for i in ids]
        images = torch.stack([example["image"] for example in examples])
        batch = eval_batch("generated", ids, images, [captions_of(e)[0] for e in examples])
        start = perf_counter()
        measurement.update(batch)
        return (perf_counter() - start) * num_images / len(ids)


def _looking(measurement: Measurement, pictures: Pictures) -> float:
    ids = range(min(BATCH, len(pictures)))
    start = perf_counter()
    measurement.update(pictures.read(ids))
    return (perf_counter() - start) * len(pictures) / len(ids)


def _encoding_seconds(pipeline: TextToImage, prompts: Sequence[str]) -> float:
    start = perf_counter()
    for prompt in prompts:
        pipeline.text_encoder.encode([prompt])
    return perf_counter() - start
