"""Waiting for a disk that is full or out of reach, so that a run is not lost for it."""

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
        write: What may raise DiskError.
        seconds: How long to go on trying; 0 tries once.
        interrupted: Asked every second of a pause; True ends the waiting.

    Raises:
        DiskError: `write` failed to the end.
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
