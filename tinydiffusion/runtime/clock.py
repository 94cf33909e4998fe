"""Stopwatches on the monotonic clock, which no time change can turn back."""

import time
from types import TracebackType


class Stopwatch:
    """Adds up the time spent inside `with` blocks, in seconds."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._stopped_at = seconds
        self._lap_from = seconds
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Everything so far, the running block included."""
        return self._stopped_at + (0.0 if self._since is None else time.monotonic() - self._since)

    def lap(self) -> float:
        """Seconds since the last lap."""
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
