"""Tells a loss that has left its usual range from the scatter of single batches."""

from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

REMEMBERED = 200  # usual steps that say what is usual
NEEDED = 50  # of them before anything is called a spike
IN_A_ROW = 5  # high steps that make a spike; a hard batch alone is none
DEVIATIONS = 8.0
FACTOR = 1.5  # a spike is at least this much above the median


class SpikeDetector:
    """Watches the loss of every step.

    A step is high when its loss exceeds the median of the last usual ones by 8 robust standard
    deviations (1.4826 times the median absolute deviation) and by half; IN_A_ROW of them are a
    spike. Then it starts anew, so that a lasting change is reported once.
    """

    def __init__(self) -> None:
        self._usual: deque[float] = deque(maxlen=REMEMBERED)
        self._high = 0

    @property
    def calm(self) -> bool:
        """Return whether the last step was a usual one."""
        return self._high == 0

    def add(self, loss: float) -> bool:
        """Add the loss of a step; return whether a spike is complete with it."""
        if len(self._usual) < NEEDED or loss <= self._limit():
            self._usual.append(loss)
            self._high = 0
            return False
        self._high += 1
        if self._high < IN_A_ROW:
            return False
        self._usual.clear()
        self._high = 0
        return True

    def state(self) -> dict[str, Any]:
        """JSON-able; `load` takes it."""
        return {"usual": list(self._usual), "high": self._high}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._usual = deque(state["usual"], maxlen=REMEMBERED)
        self._high = state["high"]

    def _limit(self) -> float:
        middle = median(self._usual)
        deviation = 1.4826 * median(abs(loss - middle) for loss in self._usual)
        return middle + max(DEVIATIONS * deviation, (FACTOR - 1) * abs(middle))
