"""Which numbers a trainer takes, and what its checkpoints' state is made of."""

from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from tinydiffusion.registry import fits
from tinydiffusion.training.checkpoints.folder import CheckpointError

COUNTERS = ("pictures_seen", "step", "skipped_steps", "loss_spikes", "rollbacks", "data_offset")
"""Attributes of a trainer that travel in its checkpoints."""
STATE: dict[str, Any] = {
    **dict.fromkeys((*COUNTERS, "ema_updates"), int),
    "seconds": float,
    "hooked_at": list[int],
    "spikes": dict[str, Any],
    "identity": dict[str, Any],
}
"""Entry of a checkpoint's state -> its type."""


def _finite_and(holds: Callable[[float], bool]) -> Callable[[Any], bool]:
    return lambda value: isfinite(value) and holds(value)


def _anything(value: Any) -> bool:  # noqa: ARG001
    return True


_positive = _finite_and(lambda value: value > 0)

RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        ("num_pictures", "accumulation", "checkpoint_every", "log_every"),
        ("at least 1", lambda value: value >= 1),
    ),
    **dict.fromkeys(
        ("learning_rate", "muon_learning_rate", "gradient_clip"), ("positive", _positive)
    ),
    **dict.fromkeys(
        ("warmup_pictures", "weight_decay", "disk_wait_seconds"),
        ("0 or more", _finite_and(lambda value: value >= 0)),
    ),
    "decay_fraction": ("in [0, 1]", _finite_and(lambda value: value <= 1 and value >= 0)),
    "betas": ("each in [0, 1)", lambda values: all(0 <= value < 1 for value in values)),
    **dict.fromkeys(
        ("max_seconds", "hang_seconds"),
        ("positive, or None", lambda value: value is None or _positive(value)),
    ),
}


def check_ranges(**values: Any) -> None:
    """Raise ValueError for the first of the values that is out of its range in RANGES."""
    for name, value in values.items():
        allowed, holds = RANGES.get(name, ("", _anything))
        if not holds(value):
            raise ValueError(f"{name} must be {allowed}, got {value}")


def check_state(path: Path, state: Mapping[str, Any]) -> None:
    """Raise CheckpointError where an entry of STATE is missing or of another type."""
    for name, kind in STATE.items():
        if name not in state or not fits(state[name], kind):
            told = f"{state[name]!r:.40}" if name in state else "nothing"
            raise CheckpointError(f"{path} is of another kind of run: {name} is {told}")
