"""Stopwatches on the monotonic clock, which changes of the system time do not affect."""

import time
from types import TracebackType


class Stopwatch:
    """A stopwatch that adds up the time spent inside its `with` blocks, in seconds."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._stopped_at = seconds
        self._lap_from = seconds
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Total so far, including the running block."""
        return self._stopped_at + (0.0 if self._since is None else time.monotonic() - self._since)

    def lap(self) -> float:
        """Start a new lap and return the seconds since the last one."""
        before, self._lap_from = self._lap_from, self.seconds
        return self._lap_from - before

    def __enter__(self) -> "Stopwatch":
        self._since = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped_at, self._since = self.seconds, None
