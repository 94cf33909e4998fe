"""Settings without effect because the run is too short for them."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from tinydiffusion.config import Config, EvaluationConfig, SamplingConfig, TrainingConfig
from tinydiffusion.training.schedule import learning_rate_factor

PARTS = 1000  # points of a run at which the learning rate is computed
LONG = 600.0  # seconds from which the loss of a run is costly
INTERVALS = {
    "training.checkpoint_every": "the only checkpoint is that of the end",
    "training.log_every": "the only row of metrics is that of the end",
    "sampling.every": "grids and validation losses come at the start and at the end only",
    "evaluation.every": "metrics come at the start and at the end only",
}
"""Setting -> consequence where the run is shorter."""


def short_run_remarks(config: Config) -> list[str]:
    """List remarks on the settings of a run that have no effect because of its length."""
    warm_up = warm_up_remark(config.training, config.training.num_pictures)
    return [*([] if warm_up is None else [warm_up]), *_intervals(config)]


def warm_up_remark(training: TrainingConfig, num_pictures: int) -> str | None:
    """Describe how high the learning rate gets where its warm-up does not end in time.

    Args:
        training: Settings of the run.
        num_pictures: Pictures that the run sees from start to end.

    Returns:
        One line, or None where the learning rate reaches its peak.
    """
    warm_up, level = training.warmup_pictures, (1 - training.decay_fraction) * num_pictures
    if warm_up <= level:
        return None
    factors = (
        learning_rate_factor(
            part * num_pictures // PARTS,
            part / PARTS,
            warmup_pictures=warm_up,
            decay_fraction=training.decay_fraction,
        )
        for part in range(PARTS + 1)
    )
    peak, asked = max(factors) * training.learning_rate, training.learning_rate
    why = (
        f"is longer than the run of {num_pictures}"
        if warm_up > num_pictures
        else f"lasts into the decay, from picture {level:.0f} of {num_pictures} on"
    )
    return (
        f"the warm-up of {warm_up} pictures {why}: the learning rate reaches {peak:.2g} of "
        f"{asked:g}; set training.warmup_pictures to {num_pictures // 10}, say"
    )


def checkpoint_remark(
    training: TrainingConfig, num_pictures: int, total_seconds: float
) -> str | None:
    """Warn that a long run has no checkpoint before its end; None if it has, or is short."""
    if training.checkpoint_every < num_pictures or total_seconds < LONG:
        return None
    return (
        f"no checkpoint before the end: training.checkpoint_every is {training.checkpoint_every}, "
        f"the run sees about {num_pictures} pictures; a crash would lose all of it"
    )


def _intervals(config: Config) -> Iterator[str]:
    """Yield a remark for each interval that is longer than the run; defaults are left out."""
    num_pictures = config.training.num_pictures
    for key, consequence in INTERVALS.items():
        section, _, name = key.partition(".")
        settings = getattr(config, section)
        every = getattr(settings, name)
        if every is not None and every > num_pictures and every != _default(settings, name):
            yield f"{key} {every} is longer than the run of {num_pictures} pictures: {consequence}"


def _default(settings: TrainingConfig | SamplingConfig | EvaluationConfig, name: str) -> Any:
    return next(f.default for f in fields(settings) if f.name == name)
