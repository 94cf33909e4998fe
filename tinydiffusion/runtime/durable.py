"""Files that are complete or absent, at whatever moment the process or the machine dies."""

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from tinydiffusion.runtime.errors import DiskError, DiskFullError

NO_SPACE = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
"""Error numbers of a full disk, or of a quota or size limit."""


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk; an interruption may leave a part of it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def make_folder(path: Path) -> None:
    """Make a folder and its parents, and wait until their names are on the disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    if os.name == "nt":  # Windows can neither open nor sync a folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that any reader sees the whole old or the whole new content."""
    path = path.resolve() if path.is_symlink() else path  # the link stays a link
    unfinished = path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}"[:200])
    try:
        write_synced(unfinished, data)
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is raised below
            unfinished.unlink()
        raise
    sync_folder(path.parent)


def sweep(folder: Path, older_than: float = 0.0) -> None:
    """Remove the unfinished files that `replace_file` leaves in a folder when it is killed.

    Args:
        folder: Folder that it wrote to.
        older_than: Lowest age in seconds; a younger file may be another process's work and stays.
    """
    for unfinished in folder.glob(".tmp-*"):
        with contextlib.suppress(FileNotFoundError):  # another process has swept, or finished
            age = time.time() - unfinished.stat().st_mtime
            if unfinished.is_file() and (age > older_than or not older_than):
                unfinished.unlink()


def cache_root() -> Path:
    """Return the cache folder, from the environment or in the user's home.

    Returns:
        `$TINYDIFFUSION_CACHE`, `$XDG_CACHE_HOME/tinydiffusion` or `~/.cache/tinydiffusion`.

    Raises:
        RuntimeError: none of them is set and the user has no home.
    """
    if own := os.environ.get("TINYDIFFUSION_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "tinydiffusion"


@contextlib.contextmanager
def naming_disk_errors(folder: Path, needed: int, *, all_errors: bool = False) -> Iterator[None]:
    """Raise DiskError in place of an OSError of writing inside the `with`.

    Args:
        folder: Folder that is written to.
        needed: Size of a checkpoint in bytes, for the message.
        all_errors: Whether every OSError is one of writing; else only those that reading cannot
            cause.

    Raises:
        DiskFullError: there is not enough space; has the space that is needed and that is free.
        DiskError: the folder is read-only or unreachable.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise DiskFullError(
                f"cannot write in {folder}: {error.strerror}; {_megabytes(needed)} needed, "
                f"{_free(folder)} free. The older checkpoints are untouched"
            ) from error
        if all_errors or error.errno == errno.EROFS:
            reason = error.strerror or str(error)
            raise DiskError(f"cannot write in {folder}: {reason}") from error
        raise


def _free(folder: Path) -> str:
    try:
        return _megabytes(shutil.disk_usage(folder).free)
    except OSError:
        return "an unknown number"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
