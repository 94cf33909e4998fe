"""Tar shards in the WebDataset layout: names and places of their samples, and their captions."""

import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from io import BufferedIOBase, BufferedReader
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tinydiffusion.pictures.captions import (
    Caption,
    caption_of,
    clean_caption,
    decode,
    parse_record,
)
from tinydiffusion.pictures.decode import is_picture_name
from tinydiffusion.pictures.scan import Found, Skipped
from tinydiffusion.shards.headers import Fault, Member, list_members

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
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MAX_RANGE = 1_000_000  # shards

Read = Callable[[int, int], bytes]
"""Offset and length -> bytes of a shard."""


class Sample(NamedTuple):
    """The members of a shard whose names differ in the suffix only, see `_paired`."""

    id: str
    parts: dict[str, Member]  # by role: "picture", "text", "json"


def find_shards(path: Path) -> tuple[Path, list[Path]]:
    """Return the folder that ids are relative to, and the shards of a path, sorted.

    Args:
        path: A shard, a folder of them, a pattern such as "shards/*.tar", or a range such as
            "shards/{00000..00099}.tar", all of which must exist.

    Raises:
        ValueError: there are no shards, or some of a range are missing.
    """
    wild = [number for number, part in enumerate(path.parts) if set(part) & set(WILDCARDS)]
    if RANGE.search(str(path)) and not path.exists():
        return _of_range(path)
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


def _of_range(path: Path) -> tuple[Path, list[Path]]:
    found = [Path(name) for name in expand_range(str(path))]
    if missing := [shard for shard in found if not shard.is_file()]:
        raise ValueError(
            f"{len(missing)} of {len(found)} shards of {path} are missing, the first is "
            f"{missing[0]}; mend the range, or write * for those that are there"
        )
    root = Path(RANGE.split(str(path), maxsplit=1)[0] + "x").parent
    return root, sorted(found)


def expand_range(path: str) -> Iterator[str]:
    """Yield every path that a path with ranges such as {00000..00099} stands for.

    Raises:
        ValueError: a range is empty, or has more than `MAX_RANGE` numbers.
    """
    if not (match := RANGE.search(path)):
        yield path
        return
    first, last = match.groups()
    if not 0 <= int(last) - int(first) < MAX_RANGE:
        raise ValueError(
            f"{match[0]} in {path} must go up, and by at most {MAX_RANGE} numbers in all"
        )
    for number in range(int(first), int(last) + 1):
        yield from expand_range(
            f"{path[: match.start()]}{number:0{len(first)}}{path[match.end() :]}"
        )


def index_shard(file: BufferedIOBase, shard: str) -> list[Sample | Skipped]:
    """Return the skipped members of a shard, then its samples in the order of first members."""
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
    return [*skipped, *_paired(samples, shard)]


def _paired(samples: dict[str, Sample], shard: str) -> Iterator[Sample | Skipped]:
    """Join x.input.png with x.output.txt, as WebDataset does by the name up to the first dot.

    They are joined only if they are the one picture and the one caption with that beginning, and
    neither has a partner of its own name; if there are several ways to join them, they are skipped.
    """
    pictures, captions = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for key, sample in samples.items():
        if "picture" in sample.parts:
            pictures[_first_key(key)].append(key)
        if sample.parts.keys() & {"text", "json"}:
            captions[_first_key(key)].append(key)
    for key, sample in samples.items():
        first = _first_key(key)
        left, right = pictures[first], captions[first]
        is_whole = len(sample.parts) > 1 and "picture" in sample.parts
        if is_whole or not left or not right:
            yield sample
        elif len(left) == len(right) == 1:
            if "picture" in sample.parts:
                yield Sample(f"{shard}/{first}", sample.parts | samples[right[0]].parts)
        else:
            found = f"{len(left)} pictures and {len(right)} captions begin with {first!a}"
            yield Skipped(sample.id, f"ambiguous name: {found}")


def _first_key(key: str) -> str:
    """Return the name up to the first dot of its last part."""
    path = PurePosixPath(key)
    return str(path.with_name(path.name.partition(".")[0]))


def _skip(shard: str, fault: Fault) -> Skipped:
    if fault.name is None:
        return Skipped(shard, f"shard {fault.reason}")
    return Skipped(f"{shard}/{fault.name}", fault.reason)


def _key_and_role(name: str) -> tuple[str, str]:
    """Return the name of a member without suffix, and its role, which is empty if it has none."""
    path = PurePosixPath(name)
    if any(part.startswith(".") for part in path.parts):
        return "", ""
    role = "picture" if is_picture_name(name) else ROLES.get(path.suffix.lower(), "")
    return str(path.with_suffix("")), role


def open_shard(shard: Path) -> BufferedReader:
    """Open a shard's file.

    Raises:
        ValueError: the shard is missing, compressed, not a file, or cannot be read.
    """
    try:
        if not shard.is_file():  # opening a pipe would block for ever
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
    """Read the caption of a sample and the bytes of its picture, or return why it is unusable.

    Args:
        read: Function of offset and length that returns bytes of the shard.
        sample: The sample to read.
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
        """Read `size` bytes of an open file."""
        file.seek(offset)
        return file.read(size)
else:

    def read_at(file: BufferedReader, offset: int, size: int) -> bytes:
        """Read `size` bytes of an open file."""
        # Without the position of the file, which forked processes and threads share.
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
