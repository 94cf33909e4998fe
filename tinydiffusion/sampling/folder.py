"""A folder of samples that is itself a data set, written by one process or several."""

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from tinydiffusion.pictures.folder import UNFINISHED
from tinydiffusion.pictures.png import to_pil
from tinydiffusion.runtime.durable import NO_SPACE, replace_file
from tinydiffusion.runtime.errors import DiskError, DiskFullError
from tinydiffusion.runtime.processes import ALONE, Processes

METADATA = "metadata.jsonl"
NAME = re.compile(r"\d{5}\.png")
MAX_SAMPLES = 100_000
"""Most samples in one folder: the names of more would not sort."""
READERS = 8  # threads: reading a file from a remote disk is slow

Rows = Mapping[int, Mapping[str, Any]]
"""Number of a sample -> how it was made."""


def sample_file(folder: Path, i: int) -> Path:
    """Return the path of sample i, which does not depend on its prompt."""
    return folder / _name(i)


def kept_samples(folder: Path, rows: Rows) -> dict[int, str]:
    """Find the wanted samples that an earlier call has left whole and unchanged: number -> sha256.

    Args:
        folder: Folder to search.
        rows: What the samples must be, as for `save_samples`.

    Raises:
        ValueError: the folder's metadata.jsonl is not of samples; it would be overwritten.
    """
    wanted = {
        int(Path(name).stem): row["sha256"]
        for name, row in earlier_rows(folder).items()
        if _is_wanted(name, row, rows)
    }
    whole = are_whole({sample_file(folder, i): sha256 for i, sha256 in wanted.items()})
    return {i: sha256 for i, sha256 in wanted.items() if sample_file(folder, i) in whole}


def describe_replaced(folder: Path, rows: Rows, kept: Mapping[int, str]) -> str:
    """Describe which earlier samples a call will delete or make anew; empty where it loses none.

    Samples that a killed call was about to write are left out.

    Args:
        folder: Folder of the samples.
        rows: What the samples will be, as for `save_samples`.
        kept: See `kept_samples`.

    Raises:
        ValueError: A picture there has a name that is needed, and is in no list of samples.
    """
    earlier = earlier_rows(folder)
    names = {_name(i) for i in rows}
    strangers = sorted(n for n in names - earlier.keys() if (folder / n).exists())
    if strangers:
        raise ValueError(
            f"{folder / strangers[0]} is not one of the samples that metadata.jsonl lists, and "
            "would be overwritten: move it away, or take another folder"
        )
    finished, staying = finished_rows(folder), {_name(i) for i in kept}
    lost = {
        name: row
        for name, row in earlier.items()
        if name not in staying and (folder / name).exists()
        if name in finished or not _is_wanted(name, row, rows)
    }
    if not lost:
        return ""
    changed = sum(_is_wanted(name, row, rows) for name, row in lost.items())
    since = f"; {changed} of them were changed since they were made" if changed else ""
    prompts = list(dict.fromkeys(str(row.get("text")) for row in lost.values()))
    more = f" and {len(prompts) - 1} more prompts" if len(prompts) > 1 else ""
    return f"replaces {len(lost)} earlier samples in {folder}/ (of {prompts[0]!r}{more}{since})"


def are_whole(files: Mapping[Path, str]) -> set[Path]:
    """Return those of the files that exist and have the given sha256."""
    with ThreadPoolExecutor(READERS) as pool:
        digests = pool.map(_sha256, files)
        return {file for file, found in zip(files, digests, strict=True) if found == files[file]}


def save_samples(
    folder: Path,
    images: Iterable[tuple[int, UInt8[Tensor, "C H W"]]],
    rows: Rows,
    kept: Mapping[int, str] | None = None,
    processes: Processes = ALONE,
) -> None:
    """Write 00000.png … and metadata.jsonl (imagefolder convention), one row per picture.

    Pictures are written as they arrive. An interrupted call leaves what `kept_samples` finds;
    files of other samples are deleted when the first picture has arrived. Collective.

    Args:
        folder: Created if it is missing.
        images: Numbered pictures that are not kept; where processes share the work, this one's.
        rows: One per picture, kept ones too; `file_name` and `sha256` are added.
        kept: See `kept_samples`.
        processes: The processes that write into the folder.

    Raises:
        DiskError: the folder cannot be written.
        ValueError: a process has another disk.
    """
    digests = dict(kept or {})
    images = iter(images)
    with processes.together():
        first = list(islice(images, 1))  # wrong settings raise before files are deleted
    processes.on_main(lambda: begin(folder, rows, digests))
    with processes.together():
        made = _write(folder, chain(first, images), rows, processes.rank)
    for each in processes.gather(made):
        digests |= each
    processes.on_main(lambda: finish(folder, rows, digests))


def begin(folder: Path, rows: Rows, known: Mapping[int, str]) -> None:
    """Delete all but the known samples from the folder, and mark these as unfinished work.

    Args:
        folder: Created if it is missing.
        rows: See `save_samples`.
        known: Number -> sha256 of samples that exist, or will; other samples are deleted.
    """
    names = {_name(i) for i in known}
    with naming_disk_errors(folder):
        for name in earlier_rows(folder).keys() - names:
            (folder / name).unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(_line(i, rows, known) for i in known)
        replace_file(folder / UNFINISHED, lines.encode())
        for file in _unfinished(folder):
            if file.name != UNFINISHED:
                file.unlink()
        (folder / METADATA).unlink(missing_ok=True)


def finish(folder: Path, rows: Rows, digests: Mapping[int, str]) -> None:
    """Write metadata.jsonl, which marks the samples as finished."""
    assert digests.keys() == rows.keys()
    with naming_disk_errors(folder):
        lines = "".join(_line(i, rows, digests) for i in sorted(rows))
        replace_file(folder / METADATA, lines.encode())
        for file in _unfinished(folder):
            file.unlink()


def finished_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the samples of a folder: file name -> row; empty where they are not finished.

    Raises:
        ValueError: the folder's metadata.jsonl is not of samples.
    """
    try:
        rows = _read_rows(folder / METADATA)
    except (ValueError, RecursionError) as error:
        raise _not_samples(folder) from error
    if not all(isinstance(row, dict) and "sampler" in row for row in rows):
        raise _not_samples(folder)
    return _by_name(rows)


def earlier_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the samples of a folder, finished or not: file name -> row."""
    rows = finished_rows(folder)
    for file in _unfinished(folder):
        rows |= _by_name(_read_rows(file, torn=True))
    return rows


@contextlib.contextmanager
def naming_disk_errors(folder: Path) -> Iterator[None]:
    """Raise DiskError in place of OSError inside the `with`."""
    try:
        yield
    except OSError as error:
        kind = DiskFullError if error.errno in NO_SPACE else DiskError
        raise kind(
            f"cannot write in {folder}: {error.strerror}; the same command goes on from what is "
            "there"
        ) from error


def _write(
    folder: Path, images: Iterable[tuple[int, UInt8[Tensor, "C H W"]]], rows: Rows, rank: int
) -> dict[int, str]:
    """Write the pictures of this process, and return number -> sha256."""
    if not (folder / UNFINISHED).exists():
        raise ValueError(
            f"process {rank} does not see {folder}: the machines of one job need a common disk; "
            "without one, start a job with a --shard of its own on each"
        )
    digests: dict[int, str] = {}
    known = UNFINISHED if rank == 0 else f".unfinished-{rank}.jsonl"
    with naming_disk_errors(folder), (folder / known).open("a", encoding="utf-8") as unfinished:
        for i, image in images:
            data = _png(image)
            digests[i] = hashlib.sha256(data).hexdigest()
            unfinished.write(_line(i, rows, digests))
            unfinished.flush()  # listed before it exists, so that every file is listed
            sample_file(folder, i).write_bytes(data)
    return digests


def _unfinished(folder: Path) -> list[Path]:
    """Find the files in which processes have listed what they write, the main process's first."""
    return sorted(folder.glob(".unfinished*.jsonl"))


def _not_samples(folder: Path) -> ValueError:
    refusal = "holds captioned pictures that are no samples; take another folder"
    return ValueError(f"{folder} {refusal}")


def _by_name(rows: Iterable[Any]) -> dict[str, dict[str, Any]]:
    named = {str(row.get("file_name")): row for row in rows if isinstance(row, dict)}
    return {name: row for name, row in named.items() if NAME.fullmatch(name)}


def _read_rows(file: Path, *, torn: bool = False) -> list[Any]:
    """Read the rows of a file, if it exists; a `torn` file may end in the middle of a row."""
    if not file.exists():
        return []
    lines = [line for line in file.read_bytes().split(b"\n") if line.strip()]
    rows = []
    with contextlib.suppress(ValueError, RecursionError) if torn else contextlib.nullcontext():
        for line in lines:
            rows.append(json.loads(line))
    return rows


def _is_wanted(name: str, row: Mapping[str, Any], rows: Rows) -> bool:
    """Return whether an earlier sample was made as the wanted sample of its number would be."""
    number, sha256 = int(Path(name).stem), row.get("sha256")
    return number in rows and isinstance(sha256, str) and row == _row(number, rows, sha256)


def _row(i: int, rows: Rows, sha256: str) -> dict[str, Any]:
    return {"file_name": _name(i), **rows[i], "sha256": sha256}


def _line(i: int, rows: Rows, digests: Mapping[int, str]) -> str:
    return json.dumps(_row(i, rows, digests[i]), ensure_ascii=False) + "\n"


def _name(i: int) -> str:
    return f"{i:05d}.png"


def _png(image: UInt8[Tensor, "C H W"]) -> bytes:
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="PNG")
    return buffer.getvalue()


def _sha256(file: Path) -> str | None:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:  # not there, or out of reach
        return None
