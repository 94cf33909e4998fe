"""Standard output and error that never end the work: whoever reads them, whatever they can show."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any


class _Lasting(io.FileIO):
    """A file descriptor that is written to until that fails; what comes later goes nowhere.

    Attributes:
        error: Why something is lost, such as a full disk; None where nothing is, or where the
            reader went away, who does not want more.
    """

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write bytes and return how many."""
        try:
            return super().write(data) or 0
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError):
                self.error = error
            return len(data)


@contextlib.contextmanager
def lasting_streams() -> Iterator[list[_Lasting]]:
    """Have the standard streams outlive their reader and their disk while the `with` block lasts.

    A command such as `tinydiffusion evaluate … --out r.json | head` still writes its file. What the
    console's encoding lacks is shown as its number. Streams that a program has put in the place of
    the process's own are left as they are.

    Yields:
        What stands below the streams, and knows whether something is lost.
    """
    before, below = (sys.stdout, sys.stderr), []
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and stream is getattr(sys, f"__{name}__"):
            stream.flush()
            below.append(_Lasting(stream.fileno(), "wb", closefd=False))
            setattr(sys, name, _text(below[-1], stream.encoding))
    try:
        yield below
    finally:
        flush()
        sys.stdout, sys.stderr = before


def flush() -> None:
    """Write out what standard output and error still hold."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed by who started the process
            stream.flush()


def _text(below: _Lasting, encoding: str) -> io.TextIOWrapper:
    buffered = io.BufferedWriter(below)
    return io.TextIOWrapper(
        buffered, encoding=encoding, errors="backslashreplace", line_buffering=True
    )
