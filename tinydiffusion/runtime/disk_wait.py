"""Waiting for a disk that is full or unreachable, so that a run is not lost."""

import time
import warnings
from collections.abc import Callable

from tinydiffusion.runtime.clock import Stopwatch
from tinydiffusion.runtime.errors import DiskError

RETRY_EVERY = 30.0  # seconds


def patiently(
    write: Callable[[], object], *, seconds: float, interrupted: Callable[[], bool]
) -> None:
    """Call `write` until it succeeds, with a warning and a pause after every DiskError.

    Args:
        write: Function that may raise DiskError.
        seconds: Time to keep trying; 0 tries once.
        interrupted: Called every second of a pause; True ends the wait.

    Raises:
        DiskError: `write` failed until the end of the wait.
    """
    with Stopwatch() as waited:
        while True:
            try:
                write()
                return
            except DiskError as error:
                if interrupted() or waited.seconds >= seconds:
                    raise
                warnings.warn(f"{error}. Waiting up to {seconds:.0f} s for it", stacklevel=2)
            retry_at = min(waited.seconds + RETRY_EVERY, seconds)
            while waited.seconds < retry_at and not interrupted():
                time.sleep(min(1.0, retry_at - waited.seconds))
