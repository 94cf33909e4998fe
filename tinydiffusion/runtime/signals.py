"""Signals: SIGTERM and SIGINT request a stop, a second one stops at once; SIGUSR1 saves."""

import os
import signal
import threading
from types import FrameType, TracebackType


class StopRequest:
    """A context manager whose `received` is the name of the signal that requested a stop, or None.

    A second signal exits at once with 128 + its number. SIGUSR1, which Slurm can send before it
    takes a machine away, requests a checkpoint only. The previous handlers are restored
    afterwards. Outside the main thread, where Python delivers no signals, no handler is set.
    """

    ENDS = (signal.SIGTERM, signal.SIGINT)
    SAVES = (signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") else ()  # Windows has none

    def __init__(self) -> None:
        self.received: str | None = None
        self._save = False
        self._before = {}

    def take_save(self) -> bool:
        """Return whether a checkpoint was requested since the last call."""
        asked, self._save = self._save, False
        return asked

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            handlers = {
                **dict.fromkeys(self.ENDS, self._end),
                **dict.fromkeys(self.SAVES, self._ask),
            }
            self._before = {number: signal.signal(number, h) for number, h in handlers.items()}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _end(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.received is not None:
            os._exit(128 + number)
        self.received = signal.Signals(number).name
        # Not print(): a handler may interrupt one.
        os.write(2, f"\n{self.received}: finishing the step, then saving\n".encode())

    def _ask(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._save = True
        os.write(2, f"\n{signal.Signals(number).name}: saving after this step\n".encode())
