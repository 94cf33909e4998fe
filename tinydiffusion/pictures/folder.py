"""Reader of a folder of pictures, for training and for evaluation."""

import re
import unicodedata
from collections.abc import Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tinydiffusion.pictures.caption_files import (
    EMPTY,
    NO_CAPTION,
    describe_near_names,
    index_caption_files,
    read_beside,
)
from tinydiffusion.pictures.captions import clean_caption, shown
from tinydiffusion.pictures.decode import is_picture_name
from tinydiffusion.pictures.metadata import Table, metadata_files, near_metadata, read_table
from tinydiffusion.pictures.scan import Found, Skipped
from tinydiffusion.pictures.walk import walk

UNFINISHED = ".unfinished.jsonl"
"""File that a folder of samples has until it is complete."""
CAPTIONS = ("auto", "folder")
LAYOUTS = (
    "metadata.jsonl with lines like "
    '{"file_name": "a.png", "text": "a red cube"}; '
    "metadata.csv with the columns file_name,text; "
    "or a.txt (or a.caption) beside a.png"
)
CLASSES = (
    "; or set dataset.captions: folder, where the names of the sub-folders say what is in them"
)


class PictureFolder(NamedTuple):
    """The contents of a folder of pictures, nothing decoded yet.

    Attributes:
        pictures: Sorted by name; those in `uncaptioned` have no caption.
        uncaptioned: Name of a picture -> why it has no caption.
        skipped: Files and folders that are not read at all, sorted by name.
        columns: Columns of the metadata, and keys of JSON files.
        remarks: How the folder was read where that is not the usual way.
        refusal: Why captions cannot be read from this folder; empty where they can.
    """

    pictures: list[Found]
    uncaptioned: dict[str, str]
    skipped: list[Skipped]
    columns: list[str]
    remarks: list[str]
    refusal: str

    def captioned(self) -> list[Found | Skipped]:
        """Return everything sorted by name, with uncaptioned pictures as skipped."""
        without = (Skipped(*item) for item in self.uncaptioned.items())
        with_caption = (each for each in self.pictures if each.id not in self.uncaptioned)
        return sorted([*with_caption, *without, *self.skipped], key=lambda item: item[0])


def read_folder(
    root: Path, columns: Sequence[str] = ("text",), captions: str = "auto"
) -> PictureFolder:
    """Find the pictures of a folder and its sub-folders, and their captions.

    Args:
        root: The folder; links in it are followed.
        columns: Columns of metadata that may hold captions; the first one that exists is read.
        captions: "auto" reads the folder's metadata, else files beside the pictures; "folder"
            uses the name of the sub-folder that contains a picture.

    Raises:
        ValueError: there is no such folder, its samples are not complete, it has no pictures, two
            metadata files or a malformed one.
    """
    if captions not in CAPTIONS:
        raise ValueError(f"captions must be one of {', '.join(CAPTIONS)}, got {captions!r}")
    if not root.exists():
        raise ValueError(f"no such folder: {root}")
    if not root.is_dir():
        raise ValueError(f"not a folder: {root}; give the folder that holds the pictures")
    if (root / UNFINISHED).exists():
        raise ValueError(
            f"{root} holds samples that are not finished: run their command again, it goes on"
        )
    names, skipped = walk(root)
    read = _by_folder if captions == "folder" else _by_metadata
    contents = read(root, names, columns)
    return contents._replace(
        pictures=sorted(contents.pictures, key=lambda picture: picture.id),
        uncaptioned=dict(sorted(contents.uncaptioned.items())),
        skipped=sorted([*contents.skipped, *skipped]),
    )


# ---- captions of a metadata file -------------------------------------------------------------


def _by_metadata(root: Path, names: set[str], columns: Sequence[str]) -> PictureFolder:
    files = metadata_files(names)
    if len(files) > 1:
        raise ValueError(f"{root} has both {' and '.join(files)}; keep one")
    if not files:
        return _by_caption_files(root, names, columns)
    table = read_table(root / files[0], columns)
    if table.rows:
        return _listed(root, names, files[0], table)
    contents = _by_caption_files(root, names, columns)
    refusal = contents.refusal and f"no captions in {root}: {table.fault}; accepted are: {LAYOUTS}"
    remarks = [*table.remarks, f"not read as metadata: {table.fault}", *contents.remarks]
    columns = [*table.columns, *contents.columns]
    return contents._replace(refusal=refusal, remarks=remarks, columns=columns)


def _listed(root: Path, names: set[str], file: str, table: Table) -> PictureFolder:
    unlisted = set(filter(is_picture_name, names)) - {row.file_name for row in table.rows}
    alike = {_fold(name): name for name in unlisted}
    contents = PictureFolder([], {}, [], table.columns, list(table.remarks), "")
    faults = [row.fault for row in table.rows if row.fault]
    for name, caption, fault in table.rows:
        near = alike.get(_fold(name))
        if near is not None and not (root / name).exists():
            reason = f"missing or not a file: the folder has {near!a}"
            contents.skipped.append(Skipped(name, reason))
            unlisted.discard(near)
            continue
        contents.pictures.append(Found(name, root / name, caption))
        if not caption:
            contents.uncaptioned[name] = f"{NO_CAPTION}: {fault}" if fault else NO_CAPTION
    contents.skipped.extend(Skipped(name, f"not listed in {file}") for name in unlisted)
    return contents._replace(refusal=faults[0] if faults else "")


def _fold(name: str) -> str:
    """Normalise a name, so that case and the encoding of accents make no difference."""
    return unicodedata.normalize("NFC", name).casefold()


# ---- captions of files beside the pictures ---------------------------------------------------


def _by_caption_files(root: Path, names: set[str], columns: Sequence[str]) -> PictureFolder:
    pictures = _pictures_of(root, names)
    index = index_caption_files(names)
    beside = {name: read_beside(root, name, index, columns) for name in pictures}
    uncaptioned = {name: each.fault for name, each in beside.items() if each.fault}
    found = [Found(name, root / name, beside[name].caption) for name in pictures]
    unread = [Skipped(name, f"metadata not read: {hint}") for name, hint in near_metadata(names)]
    read = {name: each.file for name, each in beside.items() if each.caption}
    refusal = "" if read else _refusal(root, pictures, list(uncaptioned.values()), unread)
    keys = list(dict.fromkeys(key for each in beside.values() for key in each.keys))
    return PictureFolder(found, uncaptioned, unread, keys, describe_near_names(read), refusal)


def _refusal(root: Path, pictures: list[str], faults: list[str], unread: list[Skipped]) -> str:
    """Return why no picture has a caption; empty where faults of single files are the reason."""
    kinds = {fault.partition(":")[0] for fault in faults}
    if not kinds <= {NO_CAPTION, EMPTY}:
        return ""
    if empty := [fault for fault in faults if fault.startswith(EMPTY)]:
        first = empty[0].partition(": ")[2]
        return f"no captions in {root}: {len(empty)} caption files are empty (first {first})"
    in_classes = not unread and all("/" in name for name in pictures)
    more = CLASSES if in_classes else ""
    return f"no captions in {root}{_hint(unread)}; accepted are: {LAYOUTS}{more}"


def _pictures_of(root: Path, names: set[str]) -> list[str]:
    pictures = sorted(filter(is_picture_name, names))
    if not pictures:
        unread = [
            Skipped(name, f"metadata not read: {hint}") for name, hint in near_metadata(names)
        ]
        shards = "; it holds tar shards" if any(name.endswith(".tar") for name in names) else ""
        raise ValueError(f"no pictures in {root}{shards}{_hint(unread)}")
    return pictures


def _hint(unread: list[Skipped]) -> str:
    """Return a hint about files that may be misnamed or misplaced metadata."""
    if not unread:
        return ""
    listed = ", ".join(shown(name) for name, _ in unread)
    return f"; found {listed}: {unread[0].reason.partition(': ')[2]}"


# ---- captions of folders' names --------------------------------------------------------------


def _by_folder(root: Path, names: set[str], columns: Sequence[str]) -> PictureFolder:
    del columns
    contents = PictureFolder([], {}, [], [], _unused(names), "")
    for name in _pictures_of(root, names):
        folder = PurePosixPath(name).parent.name
        caption = clean_caption(re.sub(r"[\s_-]+", " ", folder))
        contents.pictures.append(Found(name, root / name, caption))
        if not caption:
            contents.uncaptioned[name] = f"{NO_CAPTION}: in no sub-folder whose name would be one"
    if not any(picture.caption for picture in contents.pictures):
        refusal = f"no captions in {root}: captions: folder takes them from sub-folders' names"
        return contents._replace(refusal=f"{refusal}, and no picture lies in one")
    return contents


def _unused(names: set[str]) -> list[str]:
    files = sorted([*metadata_files(names), *chain(*index_caption_files(names).values())])
    if not files:
        return []
    first = shown(files[0])
    return [
        f"captions are the names of folders: caption files not read: {len(files)} (first {first})"
    ]
