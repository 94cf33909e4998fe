"""Local copies of remote shards, in a folder of bounded size that processes share."""

import contextlib
import hashlib
import os
import sys
import time
import uuid
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from tinydiffusion.runtime.durable import NO_SPACE, cache_root, sweep
from tinydiffusion.runtime.errors import DiskError, DiskFullError, RunError
from tinydiffusion.shards.addresses import Shard, filesystem

HOUR = 3600.0
WAITS = (1.0, 5.0, 25.0)  # seconds before each retry of a failed copy
LOCKS = 64


class ShardError(RunError):
    """A shard that cannot be read now, or has changed since the start."""


class ShardCopies:
    """A folder of local copies of remote shards; the least recently opened are removed for space.

    A shard is copied once, however many processes open it; a reader can go on reading an open file
    after another process has removed it.

    Args:
        bound: Largest size of all copies together, in bytes.
    """

    def __init__(self, bound: int) -> None:
        self.bound = bound

    @property
    def folder(self) -> Path:
        """Folder of the copies, inside `cache_root`."""
        return cache_root() / "shards"

    def open(self, shard: Shard) -> BufferedReader:
        """Open the copy of a shard, and make it first if it does not exist.

        Raises:
            ShardError: the shard cannot be read.
            DiskError: the copy cannot be written.
        """
        name = hashlib.sha256(shard.stamp.encode()).hexdigest()
        copy = self.folder / f"{name}.tar"
        while True:  # another process may remove the copy before it is opened
            with contextlib.suppress(FileNotFoundError):
                os.utime(copy)
                return copy.open("rb")
            self._make_folder()
            with _alone(self.folder / f"{int(name[:8], 16) % LOCKS}.lock"):
                if not copy.exists():
                    self._make_room(shard.size or 0)
                    _fetch(shard, copy)

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiskError(f"cannot write in {self.folder}: {error.strerror}") from error
        sweep(self.folder, HOUR)

    def _make_room(self, size: int) -> None:
        copies: list[tuple[float, int, Path]] = []
        for copy in self.folder.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):
                about = copy.stat()
                copies.append((about.st_mtime, about.st_size, copy))
        total = sum(taken for _, taken, _ in copies)
        for _, taken, copy in sorted(copies):
            if total + size <= self.bound:
                return
            with contextlib.suppress(PermissionError):  # on Windows, for an open file
                copy.unlink(missing_ok=True)
                total -= taken


def _fetch(shard: Shard, copy: Path) -> None:
    """Copy a shard; retry after errors that may be temporary."""
    for wait in WAITS:
        try:
            return _fetch_once(shard, copy)
        except ShardError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise
        time.sleep(wait)
    return _fetch_once(shard, copy)


def _fetch_once(shard: Shard, copy: Path) -> None:
    unfinished = copy.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{copy.name}")
    fs, path = filesystem(shard.place)
    try:
        fs.get_file(path, str(unfinished))
        if shard.packed:
            _check_digest(shard.place, unfinished, shard.packed.sha256)
        unfinished.replace(copy)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise DiskFullError(
                f"no space for {shard.size} bytes of {shard.place} in {copy.parent}; lower "
                "cache_gb, or name a larger place in $TINYDIFFUSION_CACHE"
            ) from error
        raise ShardError(f"cannot read {shard.place}: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _check_digest(place: str, copy: Path, sha256: str) -> None:
    with copy.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise ShardError(f"{place} is not what its manifest says: its SHA-256 differs")


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait until no other process or thread is inside the `with` of the same file."""
    with lock.open("ab") as file:
        with contextlib.suppress(OSError):  # without locks, the shard may be copied twice
            _lock(file.fileno())
        yield


if sys.platform == "win32":

    def _lock(descriptor: int) -> None:
        """Do nothing: on Windows a shard may be copied twice."""
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # the system frees it if the process dies
