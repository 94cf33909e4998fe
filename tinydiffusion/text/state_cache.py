"""Text states of a frozen encoder, cached in memory by caption."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

MAX_BYTES = 2**30


class CaptionStates(NamedTuple):
    """Text states of one caption, without padding."""

    hidden: Float[Tensor, "L D"]
    pooled: Float[Tensor, "P"]

    @property
    def nbytes(self) -> int:
        """Size in memory, in bytes."""
        return self.hidden.nbytes + self.pooled.nbytes


class RecentStates:
    """A cache of states by caption, up to `MAX_BYTES`; the oldest are removed first."""

    def __init__(self) -> None:
        self._states: dict[str, CaptionStates] = {}
        self._num_bytes = 0

    def find(self, captions: Iterable[str]) -> dict[str, CaptionStates]:
        """Return the states of those captions that are cached."""
        return {c: self._states[c] for c in captions if c in self._states}

    def add(self, states: Mapping[str, CaptionStates]) -> None:
        """Add states that are not cached yet."""
        self._states.update(states)
        self._num_bytes += sum(new.nbytes for new in states.values())
        while self._num_bytes > MAX_BYTES:
            oldest = self._states.pop(next(iter(self._states)))
            self._num_bytes -= oldest.nbytes

    def clear(self) -> None:
        """Remove all states."""
        self._states.clear()
        self._num_bytes = 0
