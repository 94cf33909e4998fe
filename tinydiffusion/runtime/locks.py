"""Locks that let only one process at a time work in a folder."""

import errno
import os
import platform
import sys
import warnings
from pathlib import Path
from types import TracebackType
from typing import IO

from tinydiffusion.runtime.errors import DiskError

HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
NAME = ".lock"


class FolderLock:
    """A lock file `<folder>/.lock`, held inside the `with` and removed afterwards.

    The operating system frees the lock of a process that dies, so no lock is ever stale.

    Args:
        folder: Made if it is not there.
        name: File name of the lock; another one than `.lock` to lock a single file of the folder.

    Raises:
        ValueError: Another process holds the lock; the message names that process.
        DiskError: The folder cannot be made or written.
    """

    def __init__(self, folder: Path, name: str = NAME) -> None:
        self.path = folder / name

    def __enter__(self) -> "FolderLock":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while not self._acquire():
                self._file.close()
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {platform.node()}")
            self._file.flush()
        except OSError as error:
            raise DiskError(f"cannot write in {self.path.parent}: {error.strerror}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if sys.platform != "win32":  # Windows cannot remove an open file; the next holder reuses it
            self.path.unlink(missing_ok=True)
        self._file.close()

    def _acquire(self) -> bool:
        """Lock the file and return whether it still exists under its name.

        A holder removes the file just before it releases the lock: a process that opened the file
        before that would hold the lock of a file that no other process can find.
        """
        self._file = self.path.open("a+", encoding="utf-8")
        try:
            _lock(self._file)
        except OSError as error:
            self._refuse_if_held(error)
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def _held(self) -> Path:
        """Return the path that is locked: the folder, or its file `x` for a lock `.x.lock`."""
        name = self.path.name.removeprefix(".").removesuffix("lock").removesuffix(".")
        return self.path.with_name(name) if name else self.path.parent

    def _refuse_if_held(self, error: OSError) -> None:
        if error.errno in HELD:
            self._file.seek(0)
            holder = self._file.read() or "another process"
            self._file.close()
            raise ValueError(
                f"{self._held()} is in use by {holder}; wait for it, stop it, or take another one"
            ) from error
        warnings.warn(
            f"{self.path} cannot be locked ({error.strerror}): make sure that no other process "
            "works in this folder",
            stacklevel=5,
        )


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[str]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(file: IO[str]) -> None:
        # A record lock, which forked workers do not inherit: it ends with this process.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
