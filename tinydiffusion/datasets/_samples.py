"""Tar shards in the WebDataset layout: their samples by name and place, and their captions."""

import os
import sys
from collections.abc import Callable
from io import BufferedIOBase, BufferedReader
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tinydiffusion.datasets._captions import (
    Caption,
    caption_of,
    clean_caption,
    decode,
    parse_record,
)
from tinydiffusion.datasets._pictures import is_picture_name
from tinydiffusion.datasets._scan import Found, Skipped
from tinydiffusion.datasets._tar import Fault, Member, list_members

MAX_PICTURE, MAX_TEXT = 64 << 20, 1 << 20  # bytes
ROLES = {".txt": "text", ".caption": "text", ".json": "json"}
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh91AY&SY": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
WILDCARDS = "*?["

Read = Callable[[int, int], bytes]
"""Offset and length -> bytes of a shard."""


class Sample(NamedTuple):
    """The members of a shard that share a name but for its suffix."""

    id: str
    parts: dict[str, Member]  # by role: "picture", "text", "json"


def find_shards(path: Path) -> tuple[Path, list[Path]]:
    """The folder that ids begin from, and the shards, sorted."""
    wild = [number for number, part in enumerate(path.parts) if set(part) & set(WILDCARDS)]
    if path.is_dir():
        root, found = path, [file for file in path.iterdir() if file.name.endswith(SUFFIXES)]
    elif wild and not path.exists():
        root = Path(*path.parts[: wild[0]])
        found = list(root.glob(str(Path(*path.parts[wild[0] :]))))
    else:
        root, found = path.parent, [path]
    shards = sorted(file for file in found if not file.name.startswith("."))
    if not shards:
        raise ValueError(f"no shards in {path}; give a .tar file, a folder of them or a pattern")
    return root, shards


def index_shard(file: BufferedIOBase, shard: str) -> list[Sample | Skipped]:
    """What was left out of a shard, then its samples in the order of their first members."""
    samples: dict[str, Sample] = {}
    skipped: list[Skipped] = []
    others: list[str] = []
    for entry in list_members(file):
        if isinstance(entry, Fault):
            skipped.append(_skip(shard, entry))
            continue
        key, role = _key_and_role(entry.name)
        if not role:
            others.append(entry.name)
            continue
        parts = samples.setdefault(key, Sample(f"{shard}/{key}", {})).parts
        if role in parts:
            reason = f"a second {role} of its name: {parts[role].name} comes first"
            skipped.append(Skipped(f"{shard}/{entry.name}", reason))
        parts.setdefault(role, entry)
    if others:  # one entry: extras of usable samples must not outweigh them
        reason = f"not a picture or caption: {len(others)} members"
        skipped.append(Skipped(f"{shard}/{others[0]}", reason))
    return [*skipped, *samples.values()]


def _skip(shard: str, fault: Fault) -> Skipped:
    if fault.name is None:
        return Skipped(shard, f"shard {fault.reason}")
    return Skipped(f"{shard}/{fault.name}", fault.reason)


def _key_and_role(name: str) -> tuple[str, str]:
    """The name without its suffix and what the member is, empty where it is of no use."""
    path = PurePosixPath(name)
    if any(part.startswith(".") for part in path.parts):
        return "", ""
    role = "picture" if is_picture_name(name) else ROLES.get(path.suffix.lower(), "")
    return str(path.with_suffix("")), role


def open_shard(shard: Path) -> BufferedReader:
    """The shard's file.

    Raises:
        ValueError: it is missing, compressed, not a file, or cannot be read.
    """
    try:
        if not shard.is_file():  # to open a pipe would wait for ever
            raise ValueError(f"no such shard, or not a file: {shard}")
        file = shard.open("rb")
        start = file.read(max(map(len, COMPRESSED)))
    except OSError as error:
        raise ValueError(f"cannot read shard {shard}: {error.strerror}") from error
    for magic, kind in COMPRESSED.items():
        if start.startswith(magic):
            file.close()
            raise ValueError(
                f"shard {shard} is compressed ({kind}); unpack it to a plain .tar, "
                "its pictures are compressed already"
            )
    return file


def read_sample(read: Read, sample: Sample, caption_column: str) -> Found | Skipped:
    """The sample's caption and the bytes of its picture, or why it cannot be used.

    Args:
        read: The bytes of the shard from an offset on, so many.
        sample: Which one.
        caption_column: The key that holds the caption in `.json` members.
    """
    if "picture" not in sample.parts:
        return Skipped(sample.id, "a caption without a picture")
    try:
        caption = _read_caption(read, sample.parts, caption_column)
        return Found(sample.id, _read(read, sample.parts["picture"], MAX_PICTURE), caption)
    except ValueError as error:
        return Skipped(sample.id, str(error))


if sys.platform == "win32":

    def read_at(file: BufferedReader, offset: int, size: int) -> bytes:
        """So many bytes of an open file."""
        file.seek(offset)
        return file.read(size)
else:

    def read_at(file: BufferedReader, offset: int, size: int) -> bytes:
        """So many bytes of an open file."""
        # Without a place of its own in the file, which forked processes and threads share.
        return os.pread(file.fileno(), size, offset)


def _read(read: Read, member: Member, most: int) -> bytes:
    if member.size > most:
        raise ValueError(f"too large: {member.name} has {member.size} bytes, at most {most}")
    return read(member.offset, member.size)


def _read_caption(read: Read, parts: dict[str, Member], column: str) -> Caption:
    member = parts.get("text") or parts.get("json")
    if member is None:
        return ""
    content = _read(read, member, MAX_TEXT)
    try:
        text = decode(content)
        return clean_caption(text) if "text" in parts else caption_of(parse_record(text), column)
    except ValueError as error:
        raise ValueError(f"unreadable caption: {member.name}: {error}") from error
