"""A cache of prepared pictures on disk, with keys that depend on the content of their files."""

import contextlib
import hashlib
import json
import mmap
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from tinydiffusion.runtime.durable import cache_root, replace_file, sweep

HOUR = 3600.0
DIGEST = hashlib.sha256().digest_size


class DamagedError(ValueError):
    """A cache entry that differs from what was written."""


def cache_folder() -> Path:
    """Return the folder of prepared pictures, inside `cache_root`."""
    return cache_root() / "datasets"


def read_entry(key: str) -> tuple[dict[str, Any], UInt8[Tensor, "N"]] | None:
    """Read an entry that `write_entry` has written; a damaged one is removed, with a warning.

    Returns:
        `about` and `content`, its bytes mapped from the file; None where there is no entry.
    """
    with contextlib.suppress(OSError, RuntimeError):  # no entry; writing reports other errors
        file = cache_folder() / key
        try:
            return _read(file)
        except DamagedError as error:
            warnings.warn(f"{file}: {error}; it is made anew", stacklevel=2)
            file.unlink()
    return None


def write_entry(key: str, about: Mapping[str, Any], content: bytearray) -> None:
    """Write content and its description to the cache; warn where that is not possible."""
    header = json.dumps(about).encode()
    body = b"".join([len(header).to_bytes(8, "little"), header, content])
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder, older_than=HOUR)
        replace_file(folder / key, hashlib.sha256(body).digest() + body)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        warnings.warn(
            f"cannot keep prepared pictures, the next run decodes them again: {reason}; "
            "$TINYDIFFUSION_CACHE names another folder",
            stacklevel=2,
        )


def _read(path: Path) -> tuple[dict[str, Any], UInt8[Tensor, "N"]]:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size < DIGEST + 8:
            raise DamagedError("a damaged cache entry: too short")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    body = memoryview(mapped)[DIGEST:]
    if hashlib.sha256(body).digest() != mapped[:DIGEST]:
        raise DamagedError("a damaged cache entry: its SHA-256 differs")
    start = 8 + int.from_bytes(body[:8], "little")
    about = json.loads(bytes(body[8:start]))
    return about, torch.frombuffer(mapped, dtype=torch.uint8)[DIGEST + start :]
