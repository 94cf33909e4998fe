"""One process at a time trains in a folder."""

import errno
import os
import platform
import sys
import warnings
from pathlib import Path
from types import TracebackType
from typing import IO

from tinydiffusion.errors import DiskError

HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


class RunLock:
    """Holds `<run_dir>/.lock` while its `with` block lasts.

    The operating system frees the lock of a process that dies, so there are no stale ones.

    Raises:
        ValueError: another process holds it; names that process.
        DiskError: the folder cannot be made or written.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / ".lock"

    def __enter__(self) -> "RunLock":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            raise DiskError(f"cannot write in {self.path.parent}: {error.strerror}") from error
        try:
            _lock(self._file)
        except OSError as error:
            self._refuse_if_held(error)
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {platform.node()}")
        self._file.flush()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def _refuse_if_held(self, error: OSError) -> None:
        if error.errno in HELD:
            self._file.seek(0)
            holder = self._file.read() or "another process"
            self._file.close()
            raise ValueError(
                f"{self.path.parent} is in use by {holder}; wait for it, stop it, or take another "
                "folder"
            ) from error
        warnings.warn(
            f"{self.path} cannot be locked ({error.strerror}): make sure that no other process "
            "trains in this folder",
            stacklevel=4,
        )


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[str]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(file: IO[str]) -> None:
        # A record lock, which forked workers do not inherit: it ends with this very process.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
