"""Means over the steps between two log rows, kept on the device until they are asked for."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import fmean
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tinydiffusion.runtime.processes import ALONE, Processes

Scalars = Mapping[str, float | int | Tensor]


class Drained(NamedTuple):
    """The steps of a window."""

    means: dict[str, float]  # by name
    losses: list[float]  # of every micro-batch, in order
    called_off: list[bool]  # of every step; what was called off is in neither of the others


class LogWindow:
    """The scalars that the steps since the last row reported.

    Adding never waits for the device. Steps that were called off do not enter the means.
    """

    def __init__(self) -> None:
        self._scalars: list[list[Scalars]] = []
        self._called_off: list[Float[Tensor, ""]] = []

    def add(self, scalars: list[Scalars], called_off: Float[Tensor, ""]) -> None:
        """One step: the scalars of its micro-batches, and 1 where it was called off, else 0."""
        self._scalars.append(scalars)
        self._called_off.append(called_off)

    def drain(self, processes: Processes = ALONE) -> "Drained":
        """Return the window's scalars as means over the processes, and empty it.

        Collective.
        """
        called_off = [flag > 0 for flag in _floats(self._called_off)]
        steps = zip(self._scalars, called_off, strict=True)
        good = [scalars for step, off in steps if not off for scalars in step]
        names = sorted({name for scalars in good for name in scalars})
        own = {n: _floats([s[n] for s in good if n in s]) for n in names}
        self._scalars, self._called_off = [], []
        columns = _mean_of(processes.gather(own))
        means = {name: fmean(column) for name, column in columns.items()}
        return Drained(means, columns.get("loss", []), called_off)


def longest_run(flags: list[bool], before: int) -> tuple[int, int]:
    """The longest run of True, and the one at the end; `before` True values precede the flags."""
    runs = [len(list(g)) if flag else 0 for flag, g in groupby([True] * before + flags)]
    return max(runs, default=0), runs[-1] if runs else 0


def _mean_of(parts: Sequence[Mapping[str, list[float]]]) -> dict[str, list[float]]:
    """The mean of every entry over the parts, which have the same names and lengths."""
    return {
        name: [fmean(values) for values in zip(*(part[name] for part in parts), strict=True)]
        for name in parts[0]
    }


def _floats(values: Sequence[float | int | Tensor]) -> list[float]:
    tensors = [value for value in values if isinstance(value, Tensor)]
    if tensors and len(tensors) == len(values):
        return torch.stack(tensors).tolist()  # one wait for all of them
    return [float(value) for value in values]
