"""Captions and the files that hold them: text, `metadata.jsonl` and `metadata.csv`."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tinydiffusion.registry import suggest

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
MAX_CAPTION_LENGTH = 10_000  # characters; what is longer is not a caption
MAX_LINE = 1 << 26  # bytes of a line of metadata

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
SURROGATE = re.compile(r"[\ud800-\udfff]")
SPECIAL_TOKEN = re.compile(r"<\|?(start|end)_?of_?text\|?>", re.IGNORECASE)

Caption = str | list[str]


class Row(NamedTuple):
    """One line of a metadata file."""

    file_name: str  # relative to the folder, with forward slashes
    caption: Caption  # empty where there is none
    where: str  # file:line


def clean_caption(value: object) -> Caption:
    """The caption, or the list of captions to draw from, without surrounding blanks.

    No caption (None), a blank one and a list of blank ones all come back empty.

    Raises:
        TypeError: neither text, nor a list of texts, nor None.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return _strip(value)
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return [text for text in map(_strip, value) if text]
    raise TypeError(f"must be text or a list of texts, got {shown(repr(value)[:80])}")


def mend_caption(caption: Caption) -> tuple[Caption, list[str]]:
    """The caption without characters that no text has, and what is worth knowing of it."""
    texts = [caption] if isinstance(caption, str) else caption
    notes = []
    if any(map(CONTROL.search, texts)):
        notes.append("control characters in the caption replaced by spaces")
    if any(map(SURROGATE.search, texts)):
        notes.append("half characters (lone surrogates) in the caption replaced")
    if any(map(SPECIAL_TOKEN.search, texts)):
        notes.append("special tokens in the caption, read as plain text")
    mended = [SURROGATE.sub("\ufffd", CONTROL.sub(" ", text)) for text in texts]
    return clean_caption(mended[0] if isinstance(caption, str) else mended), notes


def shown(text: str) -> str:
    """The text on one line, fit for any terminal and any encoding of Unicode."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def read_caption(path: Path) -> str:
    """The text of a caption file in UTF-8, with or without a byte order mark.

    One longer than `MAX_CAPTION_LENGTH` is not read to its end.

    Raises:
        ValueError: the file cannot be read or is not UTF-8 text; names file and byte.
    """
    try:
        if not path.is_file():  # to open a pipe would wait for ever
            raise ValueError(f"no caption: {path.name} is missing or not a file")
        with path.open("rb") as file:
            content = file.read(4 * (MAX_CAPTION_LENGTH + 2))
            is_cut = bool(file.read(1))
    except OSError as error:
        raise ValueError(f"unreadable caption: {path.name}: {error.strerror}") from error
    if is_cut:  # perhaps inside a character
        raise ValueError(f"with a caption over {MAX_CAPTION_LENGTH} characters")
    try:
        return decode(content)
    except ValueError as error:
        raise ValueError(f"unreadable caption: {path.name} is {error}") from error


def decode(content: bytes) -> str:
    """The text of UTF-8 bytes, with or without a byte order mark.

    Raises:
        ValueError: the bytes are not UTF-8 text; names the byte.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        offset, byte = error.start, content[error.start]
        guess = "; it looks like UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise ValueError(
            f"not UTF-8 at byte {offset} (0x{byte:02x}){guess}; save the file as UTF-8"
        ) from error
    if "\0" in text:
        raise ValueError(f"not text, NUL at byte {content.index(0)}; save the file as UTF-8")
    return text.removeprefix("\ufeff")


def parse_record(text: str) -> dict[str, Any]:
    """The object that a JSON text holds.

    Raises:
        ValueError: it is not valid JSON, no object, or holds a key twice.
    """
    try:
        record = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"must be an object {{...}}, got {shown(text.strip()[:80])}")
    return record


def caption_of(record: dict[str, Any], column: str) -> Caption:
    """The record's caption, cleaned.

    Raises:
        ValueError: there is no such column, or it does not hold text.
    """
    try:
        return clean_caption(_value(record, column))
    except TypeError as error:
        raise ValueError(f"{column!r} {error}") from error


def read_metadata(path: Path, caption_column: str) -> list[Row]:
    """The rows of a `metadata.jsonl` or `metadata.csv`, in the file's order.

    Raises:
        ValueError: a malformed line, a wrong type, a `file_name` that leaves the folder or that
            comes twice; names file and line.
    """
    records = _jsonl_records(path) if path.suffix == ".jsonl" else _csv_records(path)
    rows: dict[str, Row] = {}
    for where, record in records:
        row = _row(path.parent, where, record, caption_column)
        if row.file_name in rows:
            first = rows[row.file_name].where
            raise ValueError(f"{where}: file_name {row.file_name!r} is already in {first}")
        rows[row.file_name] = row
    return list(rows.values())


def leads_out(root: Path, name: str) -> bool:
    """Whether the file lies outside the folder once links are followed."""
    try:
        return not (root / name).resolve().is_relative_to(root.resolve())
    except RuntimeError:  # a link to itself, up to Python 3.12
        return True


def _strip(text: str) -> str:
    """The text without surrounding blanks, empty where nothing of it can be seen."""
    text = text.strip()
    return text if any(c.isprintable() and c != " " for c in text) else ""


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Every line with its place; only a line feed ends one: captions may hold other line ends."""
    try:
        if not path.is_file():
            raise ValueError(f"{path}: not a file")
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), b""), start=1):
                where = f"{path}:{number}"
                if len(line) == MAX_LINE:
                    raise ValueError(f"{where}: a line over {MAX_LINE} bytes")
                try:
                    yield where, decode(line)
                except ValueError as error:
                    raise ValueError(f"{where}: {error}") from error
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error


def _jsonl_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, line in _lines(path):
        if not line.strip():
            continue
        try:
            yield where, parse_record(line)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(record := dict(pairs)) < len(pairs):
        raise ValueError("a key comes twice")
    return record


def _csv_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(MAX_LINE)  # of the process; an overlong caption is skipped, not an error
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    header: list[str] = []
    start = 1  # line where a record begins; a quoted text may go over several
    try:
        for fields in reader:
            where, start = f"{path}:{start}", reader.line_num + 1
            if not header:
                header = fields
                if len(set(header)) < len(header):
                    raise ValueError(f"{where}: a column comes twice")
            elif fields and len(fields) != len(header):
                raise ValueError(
                    f"{where}: {len(fields)} fields where the header has {len(header)}; "
                    'put "double quotes" around text with commas'
                )
            elif fields:
                yield where, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}:{start}: not valid CSV: {error}") from error


def _row(root: Path, where: str, record: dict[str, Any], caption_column: str) -> Row:
    try:
        file_name, caption = _value(record, "file_name"), caption_of(record, caption_column)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return Row(_check_file_name(root, where, file_name), caption, where)


def _value(record: dict[str, Any], key: str) -> Any:
    if key not in record:
        known = list(record)
        hint = suggest(key, known) or f"; it has {', '.join(map(repr, known)):.200}"
        raise ValueError(f"no {key!r}{hint}")
    return record[key]


def _check_file_name(root: Path, where: str, name: object) -> str:
    """The name in its shortest form, once it is sure to stay inside the folder."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where}: file_name must be text, got {shown(repr(name)[:80])}")
    if re.match(r"[A-Za-z][\w+.-]*://", name):
        raise ValueError(f"{where}: file_name {name!r} is an address; download the picture")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or re.match(r"~[^/]*/|[A-Za-z]:|.*\\", name, re.S):
        raise ValueError(
            f"{where}: file_name {name!r} must be relative to the folder, "
            "without '..', '~', a drive or '\\'"
        )
    try:
        outside = leads_out(root, name)
    except (ValueError, OSError) as error:  # a NUL, half of a surrogate pair, too long a name
        raise ValueError(f"{where}: file_name {name!r:.200} is no usable path: {error}") from error
    if outside:
        raise ValueError(f"{where}: file_name {name!r} leads out of the folder {root}")
    return path.as_posix()
