"""Standard output and error that never end the work: whoever reads them, whatever they can show."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any


class _Pipe(io.FileIO):
    """A file descriptor that is written to until it fails; what comes later goes nowhere."""

    def write(self, data: Any, /) -> int:
        """Write bytes and return how many."""
        try:
            return super().write(data) or 0
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError):  # such as a full disk: to be told, once
                raise
            return len(data)


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Have the standard streams outlive their reader while the `with` block lasts.

    A command such as `tinydiffusion evaluate … --out r.json | head` still writes its file. What the
    console's encoding lacks is shown as its number. Streams that a program has put in the place of
    the process's own are left as they are.
    """
    before = sys.stdout, sys.stderr
    if sys.stdout is not None and sys.stdout is sys.__stdout__:
        sys.stdout = _lasting(sys.stdout)
    if sys.stderr is not None and sys.stderr is sys.__stderr__:
        sys.stderr = _lasting(sys.stderr)
    try:
        yield
    finally:
        flush()
        sys.stdout, sys.stderr = before


def flush() -> None:
    """Write out what standard output and error still hold."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed by who started the process
            stream.flush()


def _lasting(stream: Any) -> io.TextIOWrapper:
    stream.flush()
    raw = io.BufferedWriter(_Pipe(stream.fileno(), "wb", closefd=False))
    return io.TextIOWrapper(
        raw, encoding=stream.encoding, errors="backslashreplace", line_buffering=True
    )
