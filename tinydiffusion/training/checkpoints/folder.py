"""Checkpoints that survive a kill at any moment: complete and verified, or not there.

    checkpoints/
      .tmp-000003-pictures-12800/     being written
      .trash-000001-pictures-4800/    being deleted
      000002-pictures-9600/
        model.safetensors  ema.safetensors  optimizer.safetensors  objective.safetensors
        state.json
        manifest.json                 last: size and sha256 of the others

Nothing is ever pickled.
"""

import errno
import hashlib
import json
import re
import shutil
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from tinydiffusion.runtime.durable import make_folder, naming_disk_errors, sync_folder, write_synced
from tinydiffusion.runtime.errors import NonFiniteError

FORMAT = 2
PARTS = ("model", "ema", "optimizer", "objective")
FILES = (*(f"{part}.safetensors" for part in PARTS), "state.json")
NAME = re.compile(r"(\d{6,})-pictures-\d+")
LARGEST_JSON = 2**26  # bytes; a manifest or a state is a few thousand
CHECKPOINTS = "checkpoints"
"""Folder of a run that holds its checkpoints."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or not of this run."""


class Checkpoint(NamedTuple):
    """All that a run needs to go on, in the order of its files."""

    model: Mapping[str, Tensor]  # trained parameters by name
    ema: Mapping[str, Tensor]  # their running average
    optimizer: Mapping[str, Tensor]
    objective: Mapping[str, Tensor]  # its buffers, and what else it remembers
    state: Mapping[str, Any]  # counters and identity; JSON

    def outline(self) -> "Checkpoint":
        """The same with the shapes of the tensors only, for a process that is handed the rest."""
        outlines = [{name: t.to("meta") for name, t in part.items()} for part in self[: len(PARTS)]]
        return Checkpoint(*outlines, state=self.state)


class CheckpointFolder:
    """The checkpoints of one run, numbered in the order of saving.

    Args:
        path: Where they lie; made on the first save.
        keep: How many are kept, at least 1.
    """

    def __init__(self, path: Path, *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"the checkpoints to keep must be at least 1, got {keep}")
        self.path = path
        self.keep = keep

    def list(self) -> list[Path]:
        """Every finished checkpoint, oldest first, not verified."""
        if not self.path.is_dir():
            return []
        found = [p for p in self.path.iterdir() if NAME.fullmatch(p.name)]
        return sorted(found, key=_number)

    def save(self, checkpoint: Checkpoint, *, pictures_seen: int) -> Path:
        """The new checkpoint's folder, safe on disk; only then are the oldest ones deleted.

        Raises:
            NonFiniteError: a tensor holds NaN or infinity; names it. Nothing is written.
            DiskFullError: there is not enough space; says how much is needed and free. The older
                checkpoints stay, and no half-written one.
            DiskError: the folder cannot be written for another reason.
        """
        _refuse_non_finite(checkpoint)
        needed = _num_bytes(checkpoint)
        with naming_disk_errors(self.path, needed, all_errors=True):
            self._sweep()
            self.check_space(needed)
            number = max((_number(p) for p in self.list()), default=0) + 1
            name = f"{number:06d}-pictures-{pictures_seen}"
            unfinished = self.path / f".tmp-{name}"
            unfinished.mkdir()
            try:
                _write_files(unfinished, checkpoint)
            except OSError:
                shutil.rmtree(unfinished, ignore_errors=True)  # the error that counts is on its way
                raise
            unfinished.rename(self.path / name)
            sync_folder(self.path)
            self._rotate()
        return self.path / name

    def check_space(self, needed: int) -> None:
        """Make the folder and raise DiskFullError where fewer than `needed` bytes are free."""
        with naming_disk_errors(self.path, needed, all_errors=True):
            make_folder(self.path)
            if shutil.disk_usage(self.path).free < needed:
                raise OSError(errno.ENOSPC, "not enough space")

    def try_out(self, needed: int) -> None:
        """Find out before a run starts whether a checkpoint of so many bytes can be written.

        Raises:
            DiskError: the folder cannot be written, or there is too little space for all the
                checkpoints that are kept and the one that is being written.
        """
        missing = max(1, self.keep + 1 - len(self.list()))
        self.check_space(missing * needed)
        with naming_disk_errors(self.path, needed, all_errors=True):
            trial = self.path / ".tmp-trial"
            trial.mkdir(exist_ok=True)
            write_synced(trial / "file", b"0")
            shutil.rmtree(trial)

    def load(self, path: Path | None = None) -> tuple[Path, Checkpoint]:
        """The newest checkpoint that verifies, or exactly the one at `path`.

        Damaged ones are named in a warning and passed over, but an explicit path has no stand-in.

        Raises:
            CheckpointError: no checkpoint, none undamaged, or the one at `path` is damaged.
        """
        if path is not None:
            return path, load_checkpoint(path)
        for candidate in reversed(self.list()):
            try:
                return candidate, load_checkpoint(candidate)
            except CheckpointError as error:
                warnings.warn(f"{error}; trying the one before", stacklevel=2)
        raise CheckpointError(f"there is no usable checkpoint in {self.path}")

    def tidy(self, whole: Path) -> None:
        """Delete what a kill kept from being deleted, if `whole`, known to load, is the newest."""
        if self.list()[-1:] == [whole]:
            with naming_disk_errors(self.path, 0, all_errors=True):
                self._rotate()

    def _rotate(self) -> None:
        for old in self.list()[: -self.keep]:
            old.rename(self.path / f".trash-{old.name}")  # never half-deleted under its own name
        self._sweep()

    def _sweep(self) -> None:
        for pattern in (".tmp-*", ".trash-*"):
            for leftover in self.path.glob(pattern):
                shutil.rmtree(leftover)


def is_checkpoint(path: Path) -> bool:
    """Tell whether a folder is one checkpoint, damaged or not."""
    return (path / "manifest.json").is_file() and (path / "state.json").is_file()


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder, every file compared with the manifest's size and sha256.

    Raises:
        CheckpointError: a file is missing, damaged or of an unknown format; names it.
    """
    files = _read_manifest(path / "manifest.json")
    data = {name: _read_verified(path / name, *files[name]) for name in FILES}
    present = {p.name for p in path.iterdir() if not p.name.startswith(".")}
    if extra := sorted(present - {*FILES, "manifest.json"}):
        raise CheckpointError(f"{path} is damaged: {extra[0]!r} is not one of its files")
    try:
        tensors = [safetensors.torch.load(data[name]) for name in FILES[: len(PARTS)]]
        state = json.loads(data["state.json"])
        if not isinstance(state, dict):
            raise ValueError(f"state.json holds {state!r:.40}")
        return Checkpoint(*tensors, state=state)
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} was not written by this program: {error}") from error


def difference(saved: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, str]:
    """`section.key` -> `old -> new` for every entry that differs, sorted by key."""
    old, new = _flat(saved), _flat(present)
    absent = "(absent)"
    return {
        key: f"{old.get(key, absent)!r} -> {new.get(key, absent)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent)
    }


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def _number(path: Path) -> int:
    return int(path.name.split("-")[0])


def _refuse_non_finite(checkpoint: Checkpoint) -> None:
    """Raise where learning has failed; what an objective remembers may hold NaN on purpose."""
    for part in ("model", "ema", "optimizer"):
        for name, tensor in getattr(checkpoint, part).items():
            if not torch.isfinite(tensor).all():
                raise NonFiniteError(
                    f"{part} tensor {name!r} holds NaN or infinity; no checkpoint was written. "
                    "Resume from the last one with a lower learning rate"
                )


def _num_bytes(checkpoint: Checkpoint) -> int:
    """Estimate the size of a checkpoint on disk in bytes, rather too large than too small."""
    tensors = [tensor for part in checkpoint[: len(PARTS)] for tensor in part.values()]
    headers = 256 * len(tensors) + 2**16  # names, shapes, and whole blocks of the file system
    return sum(t.nbytes for t in tensors) + headers + len(_json_bytes(checkpoint.state))


def _write_files(folder: Path, checkpoint: Checkpoint) -> None:
    files: dict[str, dict[str, Any]] = {}
    for name, part in zip(FILES, checkpoint, strict=True):
        data = _json_bytes(part) if name == "state.json" else _tensor_bytes(part)
        write_synced(folder / name, data)
        files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_synced(folder / "manifest.json", _json_bytes({"format": FORMAT, "files": files}))
    sync_folder(folder)


def _tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()})


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()


def _read(path: Path, size: int | None = None) -> bytes:
    """The content of a plain file, once its size is known to be right."""
    try:
        status = path.lstat()  # of a link itself: it could lead anywhere
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path} is damaged: not a plain file")
        if size is not None and status.st_size != size:
            raise CheckpointError(
                f"{path} is damaged: {status.st_size} bytes, the manifest says {size}"
            )
        if size is None and status.st_size > LARGEST_JSON:
            raise CheckpointError(f"{path} is damaged: {status.st_size} bytes are too many")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def _read_manifest(path: Path) -> dict[str, tuple[int, str]]:
    text = _read(path)
    try:
        manifest = json.loads(text)
        files = {name: (it["size"], it["sha256"]) for name, it in manifest["files"].items()}
        written, complete = manifest["format"], files.keys() == set(FILES)
        if not all(type(size) is int and isinstance(sha, str) for size, sha in files.values()):
            raise TypeError("a size or a sha256 of another type")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from error
    if written != FORMAT:
        raise CheckpointError(f"{path} is of format {written}, this version reads {FORMAT}")
    if not complete:
        raise CheckpointError(f"{path} is damaged: it lists {', '.join(files)}")
    return files


def _read_verified(path: Path, size: int, sha256: str) -> bytes:
    data = _read(path, size)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CheckpointError(f"{path} is damaged: its sha256 is not the manifest's")
    return data
