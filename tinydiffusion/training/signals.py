"""A polite end: SIGTERM and SIGINT ask the run to stop, a second one stops it."""

import os
import signal
import threading
from types import FrameType, TracebackType


class StopRequest:
    """Inside the `with`, `received` names the signal that asked for the end, or is None.

    A second signal exits at once with 128 + its number. The handlers that were there before come
    back afterwards. Outside the main thread, where Python delivers no signals, it does nothing.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.received: str | None = None
        self._before = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._handle) for s in self.SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.received is not None:
            os._exit(128 + number)
        self.received = signal.Signals(number).name
        # Not print(): a handler may interrupt one.
        os.write(2, f"\n{self.received}: finishing the step, then saving\n".encode())
