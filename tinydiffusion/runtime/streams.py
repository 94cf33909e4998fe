"""Standard output and error whose failures do not stop a command: a closed pipe, a full disk."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any


class _Lasting(io.FileIO):
    """A file descriptor that is written to until that fails; later output is discarded.

    Attributes:
        error: Why output is lost, such as a full disk; None where none is lost, or where the
            reader closed the pipe and wants no more.
    """

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write bytes and return their number."""
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
    """Ignore failures of the standard streams inside the `with`, such as a closed pipe.

    A command such as `tinydiffusion evaluate … --out r.json | head` still writes its file. A
    character that the console's encoding lacks is escaped as its number. Streams that a program has
    substituted for the process's own are left as they are.

    Yields:
        The files below the streams, whose `error` shows whether output is lost.
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
    """Flush standard output and error."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # None if closed by the parent process
            stream.flush()


def _text(below: _Lasting, encoding: str) -> io.TextIOWrapper:
    buffered = io.BufferedWriter(below)
    return io.TextIOWrapper(
        buffered, encoding=encoding, errors="backslashreplace", line_buffering=True
    )
