"""Progress of `tinydiffusion pack`: one record per finished shard, until there is a manifest."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from tinydiffusion.packing.writer import Result, ShardWriter, naming_errors
from tinydiffusion.pictures.scan import Skipped
from tinydiffusion.runtime.durable import make_folder, replace_file, sweep
from tinydiffusion.shards.manifest import (
    FILE,
    Manifest,
    ShardRecord,
    dump_manifest,
    parse_manifest,
)

FOLDER = ".pack"


class Step(NamedTuple):
    """A finished shard."""

    shard: ShardRecord
    taken: int  # number of items of the source up to its end
    last: str  # id of the last of them
    skipped: list[Skipped]  # since the previous step


class Progress:
    """The steps in a folder, including those of an earlier call with the same settings.

    Raises:
        ValueError: the folder holds shards of other settings, or other files.
    """

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.out, self.settings = out, settings
        self.folder = out / FOLDER
        self.steps: list[Step] = []
        if self._begun():
            while (step := self._read(len(self.steps))) is not None:
                self.steps.append(step)

    @property
    def taken(self) -> int:
        """Number of items of the source that are done."""
        return self.steps[-1].taken if self.steps else 0

    @property
    def pictures(self) -> int:
        """Number of pictures in finished shards."""
        return sum(step.shard.pictures for step in self.steps)

    @property
    def skipped(self) -> list[Skipped]:
        """Pictures that were left out up to the last step."""
        return [item for step in self.steps for item in step.skipped]

    def add(self, step: Step) -> None:
        """Record that a shard is finished."""
        with naming_errors(self.out):
            replace_file(self._file(len(self.steps)), json.dumps(step).encode())
        self.steps.append(step)

    def finish(self, skipped: list[Skipped]) -> Manifest:
        """Write the manifest and return it; `skipped` has all pictures that were left out."""
        manifest = Manifest(self.settings, [step.shard for step in self.steps], skipped)
        with naming_errors(self.out):
            replace_file(self.out / FILE, dump_manifest(manifest))
            shutil.rmtree(self.folder)
        return manifest

    def _begun(self) -> bool:
        """Return whether an earlier call with these settings has begun; else prepare the folder."""
        file = self.folder / "settings.json"
        if file.is_file():
            check_settings(self.out, json.loads(file.read_bytes()), self.settings)
            sweep(self.folder)
            return True
        if others := [f.name for f in self.out.glob("*") if not f.name.startswith(".")]:
            raise ValueError(f"{self.out} is not empty (it has {others[0]!r}); name a new folder")
        with naming_errors(self.out):
            make_folder(self.folder)
            replace_file(file, json.dumps(self.settings).encode())
        return False

    def _read(self, number: int) -> Step | None:
        """Read step `number`; return None where it or its complete shard does not exist."""
        try:
            shard, taken, last, skipped = json.loads(self._file(number).read_bytes())
            step = Step(ShardRecord(*shard), taken, last, [Skipped(*item) for item in skipped])
            whole = (self.out / step.shard.name).stat().st_size == step.shard.bytes
        except FileNotFoundError:
            return None
        return step if whole else None

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:05}.json"


class Packer:
    """A packer that fills one shard after the other."""

    def __init__(self, progress: Progress, shard_size: int, suffix: str) -> None:
        self.progress = progress
        self.number = progress.pictures  # index of the next picture
        self.skipped: list[Skipped] = []  # since the last finished shard
        self._shard_size, self._suffix = shard_size, suffix
        self._taken, self._last = progress.taken, ""
        self._writer: ShardWriter | None = None

    def take(self, id_: str, result: Result) -> None:
        """Add the result of the next item of the source to the shard, or to the skipped."""
        self._taken, self._last = self._taken + 1, id_
        if isinstance(result, Skipped):
            self.skipped.append(result)
            return
        if self._writer is None:
            name = f"shard-{len(self.progress.steps):05}.tar"
            self._writer = ShardWriter(self.progress.out / name, self._suffix)
        self._writer.add(f"{self.number:08}", result)
        self.number += 1
        if self._writer.pictures == self._shard_size:
            self.finish_shard()

    def finish_shard(self) -> None:
        """Finish and record the current shard, if there is one."""
        if self._writer is not None:
            step = Step(self._writer.finish(), self._taken, self._last, self.skipped)
            self.progress.add(step)
            self._writer, self.skipped = None, []

    def close(self) -> None:
        """Close the unfinished shard, if any; the next call begins it anew."""
        if self._writer is not None:
            self._writer.close()


def finished(out: Path, settings: dict[str, Any]) -> Manifest | None:
    """Return the manifest of an earlier call that was completed, None where there is none.

    Raises:
        ValueError: the earlier call had other settings.
    """
    file = out / FILE
    if not file.is_file():
        return None
    manifest = parse_manifest(file.read_text(), str(file))
    check_settings(out, manifest.settings, settings)
    if (out / FOLDER).exists():  # the call was stopped after writing the manifest
        shutil.rmtree(out / FOLDER)
    return manifest


def check_settings(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ValueError where a set was begun with other settings, with the first that differs."""
    for key in {**before, **now}:
        if before.get(key) != now.get(key):
            raise ValueError(
                f"{out} holds shards made with {key}={before.get(key)!r}, now it is "
                f"{now.get(key)!r}; name a new folder, or remove this one"
            )
