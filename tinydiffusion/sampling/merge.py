"""`tinydiffusion merge-samples`: the shards of `sample --shard` as one folder of samples."""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from tinydiffusion.runtime.outputs import held
from tinydiffusion.runtime.parts import MANIFEST, Part, Shard, in_order, share
from tinydiffusion.sampling.folder import (
    METADATA,
    UNFINISHED,
    are_whole,
    begin,
    describe_replaced,
    finish,
    finished_rows,
    kept_samples,
    naming_disk_errors,
    sample_file,
)
from tinydiffusion.sampling.job import SCHEMA
from tinydiffusion.sampling.prompts import prompts_sha256

CLEARED = ".merged-"
"""Prefix of the name of a shard's folder that is about to be removed."""


class SampleShard(NamedTuple):
    """A finished shard of samples."""

    whole: dict[str, Any]  # description of the whole that all shards are parts of
    shard: Shard
    rows: dict[int, dict[str, Any]]  # number of a sample -> its row of metadata

    def files(self, folder: Path) -> dict[Path, str]:
        """Map the files of its samples, as if they were in `folder`, to their sha256."""
        return {sample_file(folder, i): row["sha256"] for i, row in self.rows.items()}


Shards = Mapping[Path, SampleShard]


def merge_samples(folders: Sequence[Path], *, overwrite: bool = False) -> int:
    """Merge all shards in these folders into the first, as if one process had sampled.

    Pictures are moved. The same call continues an interrupted one.

    Returns:
        The exit code, 0.

    Raises:
        ValueError: a shard is missing, unfinished, damaged or of another run, or comes twice;
            nothing has been moved then.
        DiskError: a folder cannot be written.
    """
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    target = folders[0]
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        raise ValueError(f"no such folder: {', '.join(missing)}")
    shards = {
        path: read_shard(path)
        for folder in folders
        for path in sorted(folder.glob("shard-*"))
        if path.is_dir()
    }
    if not shards and not finished_rows(target):
        raise ValueError(f"no shards in {', '.join(map(str, folders))}; sample --shard makes them")
    with ExitStack() as stack:
        for folder in dict.fromkeys([*folders, *shards]):
            stack.enter_context(held(folder, "sample", overwrite=overwrite))
        if not _are_in(target, shards):  # they are if a call was killed during the clean-up
            rows = _rows_of_all(shards)
            _check_files(target, shards)
            if replaced := describe_replaced(target, rows, kept_samples(target, rows)):
                console.print(replaced)
            _move(target, shards, rows)
        with naming_disk_errors(target):
            _clear(folders, shards)
    console.print(f"{len(finished_rows(target))} pictures in {target}/")
    return 0


def read_shard(folder: Path) -> SampleShard:
    """Read the shard in a folder, without its pictures.

    Raises:
        ValueError: it is not finished, or holds something else.
    """
    if not ((folder / MANIFEST).is_file() and (folder / METADATA).is_file()):
        raise ValueError(f"{folder} is not finished: run its command again, it goes on")
    rows = {int(Path(name).stem): row for name, row in finished_rows(folder).items()}
    try:
        about = json.loads((folder / MANIFEST).read_bytes())
        if about["schema"] != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA!r}")
        whole, (number, count) = about["whole"], about["shard"]
        numbers = share(range(whole["pictures"]), (number, count))
        fits = len(rows) == len(numbers) and all(
            i in numbers and _fits(row, i, whole) for i, row in rows.items()
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is no shard of samples: {error}") from error
    if not fits:
        raise ValueError(f"{folder} holds other samples than it says: run its command again")
    return SampleShard(whole, (number, count), rows)


def _fits(row: Mapping[str, Any], i: int, whole: Mapping[str, Any]) -> bool:
    """Return whether a row fits sample i of the run; prompt and pixels are not compared."""
    own = {key: row[key] for key in ("file_name", "text", "sha256")}
    return row == {**own, "seed": whole["seed"] + i, **whole["how"]}


def _are_in(target: Path, shards: Shards) -> bool:
    """Return whether all samples of the shards are in the target, finished and whole."""
    if (target / UNFINISHED).exists():
        return False
    there = finished_rows(target)
    for shard in shards.values():
        if any(there.get(row["file_name"]) != row for row in shard.rows.values()):
            return False
        if len(are_whole(shard.files(target))) < len(shard.rows):
            return False
    return True


def _rows_of_all(shards: Shards) -> dict[int, dict[str, Any]]:
    """Collect the samples of all shards of a run: number -> row."""
    parts = {path: Part(shard.whole, shard.shard) for path, shard in shards.items()}
    paths = in_order(parts, "run")
    rows = {i: row for path in paths for i, row in sorted(shards[path].rows.items())}
    prompts = [row["text"] for row in rows.values()]
    if prompts_sha256(prompts) != shards[paths[0]].whole["prompts_sha256"]:
        raise ValueError("the prompts in the shards are not those that they were made with")
    return rows


def _check_files(target: Path, shards: Shards) -> None:
    """Check that every picture is in its shard or, moved by an earlier call, in the target.

    Also check that no other file would be removed with a shard's folder.
    """
    for path, shard in shards.items():
        expected = shard.files(path)
        lost = expected.keys() - are_whole(expected)
        moved = {target / file.name: expected[file] for file in lost}
        if gone := moved.keys() - are_whole(moved):
            file = path / min(gone).name
            raise ValueError(f"{file} is missing or damaged: run the shard's command again")
        for file in sorted(path.iterdir()):
            if not (file in expected or file.name == METADATA or file.name.startswith(".")):
                raise ValueError(f"{file} is not of the shard's samples: move it away")


def _move(target: Path, shards: Shards, rows: dict[int, dict[str, Any]]) -> None:
    digests = _digests(rows)
    begin(target, rows, digests)
    with naming_disk_errors(target):
        for path, shard in shards.items():
            for file in shard.files(path):
                if file.exists():
                    shutil.move(file, target / file.name)
    finish(target, rows, digests)


def _digests(rows: dict[int, dict[str, Any]]) -> dict[int, str]:
    return {i: row["sha256"] for i, row in rows.items()}


def _clear(folders: Sequence[Path], shards: Shards) -> None:
    """Remove what is left of the shards; rename them first, so that none is read half removed."""
    for folder in folders:
        for left in folder.glob(f"{CLEARED}*"):
            shutil.rmtree(left)
    for path in shards:
        shutil.rmtree(path.rename(path.with_name(CLEARED + path.name)))
