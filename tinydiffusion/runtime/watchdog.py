"""Watchdog that ends a run without progress and prints where it hung."""

import faulthandler
import os
import sys
import threading
import time
from types import TracebackType

from tinydiffusion.runtime.errors import WorkerError


class Watchdog:
    """A context manager that ends the process if `beat` is not called for too long inside it.

    The stacks of all threads are printed to standard error. Nothing is saved, because the thread
    that hangs holds the state: the run can be resumed from its last checkpoint.

    Args:
        seconds: Longest time between calls of `beat`; None never ends the process.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._silent_for = 0.0
        self._closed = threading.Event()

    def beat(self) -> None:
        """Report progress."""
        self._silent_for = 0.0

    def __enter__(self) -> "Watchdog":
        self.beat()
        self._closed.clear()
        if self.seconds is not None:
            threading.Thread(target=self._watch, args=(self.seconds,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closed.set()

    def _watch(self, seconds: float) -> None:
        tick = min(5.0, seconds / 4)
        before = time.monotonic()
        while not self._closed.wait(tick):
            now = time.monotonic()
            # A process that was stopped (SIGSTOP, a debugger) did not hang during that time.
            self._silent_for += min(now - before, 2 * tick)
            before = now
            if self._silent_for > seconds:
                _give_up(seconds)


def _give_up(seconds: float) -> None:
    message = (
        f"error: nothing has moved for {seconds:.0f} s; the threads stand where the lines below "
        "say. A training run goes on from its last checkpoint by the same command\n"
    )
    os.write(2, message.encode())
    faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
    os._exit(WorkerError.exit_code)
