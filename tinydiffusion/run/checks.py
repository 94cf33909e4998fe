"""Checks of a run's settings: first without the data, then with one picture of them."""

import copy
import warnings
from collections.abc import Mapping

import torch
from torch import nn

from tinydiffusion.build import build_schedule, check_plugins, prescribed_sampling
from tinydiffusion.config import Config, ConfigError
from tinydiffusion.diffusion.denoiser import Denoiser
from tinydiffusion.diffusion.guidance import check_guidance_interval
from tinydiffusion.evaluation.sources import eval_batch
from tinydiffusion.pictures.usable import first_usable
from tinydiffusion.protocols import SOURCES, Batch, Dataset, Evaluator, Objective
from tinydiffusion.runtime.errors import SettingWarning
from tinydiffusion.runtime.processes import Processes
from tinydiffusion.survey import captions_of
from tinydiffusion.training.checkpoints.data_record import digest
from tinydiffusion.without_effect import CONFIG, idle

BOUNDS = {
    "seed": (0, 2**62),
    "training.num_pictures": (1, 10**12),
    "training.batch_size": (1, 2**16),
    "training.accumulation": (1, 2**16),
    "training.num_workers": (0, 256),
    "training.warmup_pictures": (0, 10**12),
    "training.checkpoint_every": (1, 10**12),
    "training.keep_checkpoints": (1, 10**6),
    "training.log_every": (1, 10**12),
    "sampling.every": (1, 10**12),
    "sampling.num_prompts": (1, 1024),
    "sampling.guidance_scale": (0, 1000),
    "sampling.guidance_rescale": (0, 1),
    "evaluation.num_images": (1, 10**6),
    "evaluation.every_num_images": (2, 10**6),
}
"""Key -> least and most; a number beyond these is a slip: a run without end, or memory full."""
MOST_PROMPTS = 1024


def check_config(config: Config) -> None:
    """Check that settings are possible, before data are read or anything is built.

    Raises:
        ValueError: an unknown plug-in or option, a number out of its bounds, or settings that
            exclude each other.
    """
    check_plugins(config)
    _check_bounds(config)
    _check_mixes(config)
    schedule = build_schedule(config)
    Denoiser(nn.Identity(), schedule, prediction_type=config.diffusion.prediction_type)
    schedule.sampling_sigmas(config.sampling.steps, config.sampling.spacing)
    check_guidance_interval(config.sampling.guidance_interval)
    for rule in idle(CONFIG, config):
        warnings.warn(str(rule), SettingWarning, stacklevel=2)


def check_fits(
    objective: Objective,
    evaluators: Mapping[str, Evaluator],
    dataset: Dataset,
    reference: Dataset,
    device: torch.device,
) -> None:
    """Check that the parts fit the pictures, before the first step of a long run.

    Args:
        objective: Tried on the first picture; nothing is learned and no randomness used up.
        evaluators: Each is tried on the first reference picture, and its state restored.
        dataset: The training set.
        reference: The reference set of the evaluation.
        device: Device of the objective.

    Raises:
        ValueError: a part does not fit, such as a picture whose size the network cannot divide, a
            reference of another size, or a caption that `scene_accuracy` cannot judge.
    """
    example = first_usable(dataset)
    image = example["image"][None].to(device)
    batch = Batch(image=image, caption=captions_of(example)[:1], id=[example["id"]], position=[0])
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.no_grad():
        objective.loss(batch, [torch.Generator().manual_seed(0)])
    example = first_usable(reference)
    if example["image"].shape != image.shape[1:]:
        sizes = ("{2}x{1}".format(*shape) for shape in (example["image"].shape, image.shape[1:]))
        raise ConfigError(
            "the pictures of the validation set are {}, those of training {}".format(*sizes)
        )
    for evaluator in evaluators.values():
        before = copy.deepcopy(evaluator.state())  # updated in place
        for source in set(SOURCES) & set(evaluator.needs):
            image, captions = example["image"][None], captions_of(example)[:1]
            evaluator.update(eval_batch(source, [0], image, captions))
        evaluator.load_state(before)


def _check_bounds(config: Config) -> None:
    for key, (least, most) in BOUNDS.items():
        section, _, name = key.rpartition(".")
        value = getattr(getattr(config, section) if section else config, name)
        if value < least:
            raise ConfigError(f"{key} must be at least {least}, got {value}")
        if value > most:
            raise ConfigError(f"{key} must be at most {most}, got {value}")
    if len(config.sampling.prompts) > MOST_PROMPTS:
        given = len(config.sampling.prompts)
        raise ConfigError(f"sampling.prompts must be at most {MOST_PROMPTS}, got {given}")


def _check_mixes(config: Config) -> None:
    training, evaluation = config.training, config.evaluation
    if training.batch_size % training.accumulation:
        raise ConfigError(
            f"training.batch_size {training.batch_size} must be a multiple of "
            f"training.accumulation {training.accumulation}"
        )
    if evaluation.metrics and evaluation.reference == "validation" and config.validation is None:
        raise ConfigError(
            "evaluation.reference is 'validation', but there is no validation set; "
            "add one, or set evaluation.reference to 'train'"
        )
    if evaluation.every is not None and not (evaluation.every >= 1 and evaluation.metrics):
        raise ConfigError(
            f"evaluation.every must be at least 1 and have metrics to measure, got "
            f"{evaluation.every} and {list(evaluation.metrics)}"
        )
    if evaluation.keep_best is not None and evaluation.every is None:
        raise ConfigError("evaluation.keep_best needs evaluation.every, the pictures between two")
    for name in ("max_minutes", "hang_minutes"):
        minutes = getattr(training, name)
        if minutes is not None and not minutes > 0:
            raise ConfigError(f"training.{name} must be above 0, or null for none, got {minutes}")
    _check_student(config)
    guidance_scale = config.sampling.guidance_scale
    if config.objective.get("caption_dropout_prob") == 0 and guidance_scale != 1:
        raise ConfigError(
            f"sampling.guidance_scale {guidance_scale:g} needs a model that has also learned "
            "pictures without captions: set objective.caption_dropout_prob above 0, or "
            "sampling.guidance_scale to 1"
        )


def _check_student(config: Config) -> None:
    """Check that a model is sampled in the way that its objective prescribes, if it does."""
    for name, value in prescribed_sampling(config).items():
        if (given := getattr(config.sampling, name)) != value:
            raise ConfigError(
                f"sampling.{name} must be {value!r}, got {given!r}: objective "
                f"{config.objective['name']!r} makes models for that alone"
            )


def check_same_data(processes: Processes, fingerprints: dict[str, str]) -> None:
    """Check that all processes, on several machines, have found the same pictures. Collective.

    Raises:
        ConfigError: they have not.
    """
    digests = processes.gather(digest(fingerprints))
    if other := [rank for rank, each in enumerate(digests) if each != digests[0]]:
        raise ConfigError(
            f"process {other[0]} has other pictures than process 0: every machine needs the same "
            "data set (`tinydiffusion data` on both shows what differs)"
        )
