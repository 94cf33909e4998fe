"""The learning rate over a run: up, level, down."""

import math


def training_progress(
    pictures_seen: int, num_pictures: int, seconds: float, max_seconds: float | None
) -> float:
    """Return the share of the run that is over, in [0, 1]: of pictures or time, whichever is more.

    A run ends at 1. Since the learning rate decays along this number, a machine too slow for
    `num_pictures` still finishes its decay within `max_seconds`.
    """
    time = 0.0 if max_seconds is None else seconds / max_seconds
    return min(1.0, max(pictures_seen / num_pictures, time))


def learning_rate_factor(
    pictures_seen: int, progress: float, *, warmup_pictures: int, decay_fraction: float
) -> float:
    """Return the factor of the learning rate, in [0, 1].

    Linear warm-up, constant, then 1 - sqrt decay to 0 over the last part of the run. Hägele et al.
    (2024), who found this decay better than a linear one. https://arxiv.org/abs/2405.18392

    Args:
        pictures_seen: Pictures up to and including this step's.
        progress: See `training_progress`.
        warmup_pictures: Length of the warm-up; 0 is none.
        decay_fraction: The share of the run that decays, in [0, 1]; 0 is none.
    """
    warmup = min(1.0, pictures_seen / warmup_pictures) if warmup_pictures else 1.0
    decayed = max(0.0, 1 - (1 - progress) / decay_fraction) if decay_fraction else 0.0
    return min(warmup, 1 - math.sqrt(decayed))
