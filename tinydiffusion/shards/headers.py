"""Names and places of the members of a tar archive, which may come from an untrusted source.

Only the parser of one header block is used from `tarfile`: its reader treats a truncated or damaged
archive as one that ends there, and reads names of any length. Nothing is extracted or unpickled.
"""

import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from io import BufferedIOBase
from pathlib import PurePosixPath
from typing import NamedTuple

from tinydiffusion.pictures.captions import shown

BLOCK = 512
MAX_HEADERS = 2_000_000  # headers of one archive, including those of long names
MAX_EXTENSION = 1 << 16  # bytes of one header that holds a long name
MAX_NAME = 1000  # characters
MAX_TAIL = 1 << 20  # bytes of zeros from the end mark on; writers pad to a multiple of 10,240

FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
WITHOUT_DATA = (  # whatever size is in their headers
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)
PAX, GLOBAL_PAX = (b"x", b"X"), b"g"  # records for the next member, for all later members
GNU_LONG_NAME, GNU_LONG_LINK = b"L", b"K"
EXTENSIONS = (*PAX, GLOBAL_PAX, GNU_LONG_NAME, GNU_LONG_LINK)
REFUSED_NAME = re.compile(r"[A-Za-z]:|.*[\x00-\x1f\x7f\\\ud800-\udfff]", re.DOTALL)
PAX_RECORD = re.compile(rb"([1-9][0-9]{0,5}) ([^=]+)=")

Fields = dict[bytes, bytes]


class Member(NamedTuple):
    """A regular file that is complete in the archive and has a harmless name."""

    name: str  # relative, with forward slashes
    offset: int  # place of its first byte in the archive
    size: int


class Fault(NamedTuple):
    """A refused member, or a fault of the archive from some byte on."""

    name: str | None  # None for the archive
    reason: str


class BrokenArchiveError(ValueError):
    """No more of the archive can be read; the message is the reason."""


def list_members(file: BufferedIOBase) -> Iterator[Member | Fault]:
    """Yield the regular files of an uncompressed tar archive, in its order, and all faults.

    Only headers are read. Directories are left out; links, devices and sparse files are faults, as
    are names that could lead out of a folder. An archive that is truncated, damaged or over the
    limits ends with a fault without a name, after all members that are complete before that place.

    Args:
        file: The archive, seekable. Its position may be changed between two steps.
    """
    try:
        yield from _walk(file)
    except BrokenArchiveError as error:
        yield Fault(None, str(error))


def _walk(file: BufferedIOBase) -> Iterator[Member | Fault]:
    length = file.seek(0, os.SEEK_END)
    position, for_all, for_next = 0, Fields(), Fields()
    for _ in range(MAX_HEADERS):
        block = _read_block(file, position)
        if not any(block):
            return _check_end(file, position, length)
        header = _parse(block, position)
        extends = header.type in EXTENSIONS
        fields = {} if extends else for_all | for_next
        name, size = _name_and_size(header, fields, position)
        start = _data_start(file, block, position)
        if start + size > length:
            raise _cut(length, f"{shown(name[:100])} would end at byte {start + size}")
        position = start + -(-size // BLOCK) * BLOCK
        if extends:
            target = for_all if header.type == GLOBAL_PAX else for_next
            target |= _read_extension(file, header.type, start, size)
            continue
        for_next = Fields()
        if reason := _refusal(header.type, name, fields):
            yield Fault(shown(name[:100]), reason)
        elif header.type in FILES:
            yield Member(PurePosixPath(name).as_posix(), start, size)
    raise BrokenArchiveError(f"too many members: over {MAX_HEADERS}; split the archive")


def _read_block(file: BufferedIOBase, position: int) -> bytes:
    file.seek(position)
    block = file.read(BLOCK)
    if len(block) < BLOCK:
        lost = "in a header" if block else "no end mark"
        raise _cut(position + len(block), lost)
    return block


def _check_end(file: BufferedIOBase, position: int, length: int) -> None:
    """Check that the archive ends with two blocks of zeros and at most `MAX_TAIL` of zeros."""
    tail = length - position
    if tail < 2 * BLOCK:
        raise _cut(length, "in the end mark")
    file.seek(position)
    if tail > MAX_TAIL or any(file.read(tail)):
        raise BrokenArchiveError(f"goes on behind its end mark: {tail} bytes from {position} on")


def _parse(block: bytes, position: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise _damaged(position, f"{error}") from error


def _name_and_size(header: tarfile.TarInfo, fields: Fields, position: int) -> tuple[str, int]:
    """Return name and size of a member; those of an extension header take precedence."""
    name, size = header.name, header.size
    if b"path" in fields:
        name = fields[b"path"].decode("utf-8", "surrogateescape")
    if b"size" in fields:
        if not re.fullmatch(rb"[0-9]{1,18}", fields[b"size"]):
            raise _damaged(position, f"a size of {fields[b'size'][:20]!r}")
        size = int(fields[b"size"])
    if header.type in WITHOUT_DATA:
        size = 0
    if size < 0:
        raise _damaged(position, f"a size of {size}")
    return name, size


def _data_start(file: BufferedIOBase, block: bytes, position: int) -> int:
    """Return the offset of the data, after the header and the further maps of a sparse member."""
    is_sparse = block[156:157] == tarfile.GNUTYPE_SPARSE
    more, position = is_sparse and block[482], position + BLOCK
    while more:
        more, position = _read_block(file, position)[504], position + BLOCK
    return position


def _read_extension(file: BufferedIOBase, kind: bytes, start: int, size: int) -> Fields:
    """Read the fields that an extension header sets for the member or members after it."""
    if size > MAX_EXTENSION:
        raise _damaged(start, f"an extension header of {size} bytes, at most {MAX_EXTENSION}")
    if kind == GNU_LONG_LINK:
        return {}
    file.seek(start)
    content = file.read(size)
    if kind == GNU_LONG_NAME:
        return {b"path": content.rstrip(b"\0")}
    return dict(_pax_records(content, start))


def _pax_records(content: bytes, start: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values of lines "length key=value"; the length is that of the whole line."""
    position = 0
    while position < len(content):
        match = PAX_RECORD.match(content, position)
        end = position + int(match[1]) if match else 0
        if not match or end <= match.end() or content[end - 1 : end] != b"\n":
            raise _damaged(start + position, "a malformed pax record")
        yield match[2], content[match.end() : end - 1]
        position = end


def _refusal(kind: bytes, name: str, fields: Mapping[bytes, bytes]) -> str:
    """Return why a member is refused; empty for regular files and directories."""
    if kind == tarfile.GNUTYPE_SPARSE or any(key.startswith(b"GNU.sparse") for key in fields):
        return "refused: a sparse file"
    if kind == tarfile.DIRTYPE:
        return ""
    if kind not in FILES:
        return f"refused: not a regular file (type {kind!r})"
    path = PurePosixPath(name)
    if not path.name or path.is_absolute() or ".." in path.parts or REFUSED_NAME.match(name):
        return "refused: its name could lead out of a folder or is no text"
    if len(name) > MAX_NAME:
        return f"refused: its name has {len(name)} characters, at most {MAX_NAME}"
    return ""


def _cut(position: int, detail: str) -> BrokenArchiveError:
    return BrokenArchiveError(f"cut: at byte {position}, {detail}")


def _damaged(position: int, detail: str) -> BrokenArchiveError:
    return BrokenArchiveError(f"damaged: at byte {position}, {detail}")
