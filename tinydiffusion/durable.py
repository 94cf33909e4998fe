"""Files that are whole or not there, whatever moment the process or the machine dies at."""

import contextlib
import os
import uuid
from pathlib import Path


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it; it may be half there if this is cut short."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the disk knows the names in a folder."""
    if os.name == "nt":  # Windows can neither open nor sync a folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that any reader sees the old content or the new one, never a part."""
    unfinished = path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}"[:200])
    try:
        write_synced(unfinished, data)
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the error that counts is on its way
            unfinished.unlink()
        raise
    sync_folder(path.parent)
