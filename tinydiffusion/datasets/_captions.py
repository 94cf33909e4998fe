"""Captions and the files that hold them: text, `metadata.jsonl` and `metadata.csv`."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tinydiffusion.registry import suggest

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")

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
        return value.strip()
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return [text.strip() for text in value if text.strip()]
    raise TypeError(f"must be text or a list of texts, got {value!r:.80}")


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises:
        ValueError: the file cannot be read or is not UTF-8 text; names the file and the byte.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 at byte {error.start} (0x{content[error.start]:02x}); "
            "save the file as UTF-8"
        ) from error
    if "\0" in text:
        offset = len(text.partition("\0")[0].encode())
        raise ValueError(f"{path}: not text, NUL at byte {offset}; save the file as UTF-8")
    return text.removeprefix("\ufeff")


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


def _jsonl_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    # Only "\n" ends a line: str.splitlines would also cut at characters that captions may hold.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{where}: not valid JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{where}: must be an object {{...}}, got {line:.80}")
        yield where, record


def _csv_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    header: list[str] = []
    try:
        for fields in reader:
            if not header:
                header = fields
            elif fields and len(fields) != len(header):
                raise ValueError(
                    f"{path}:{reader.line_num}: {len(fields)} fields where the header has "
                    f'{len(header)}; put "double quotes" around text with commas'
                )
            elif fields:
                yield f"{path}:{reader.line_num}", dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: not valid CSV: {error}") from error


def _row(root: Path, where: str, record: dict[str, Any], caption_column: str) -> Row:
    for key in ("file_name", caption_column):
        if key not in record:
            known = list(record)
            hint = suggest(key, known) or f"; it has {', '.join(map(repr, known))}"
            raise ValueError(f"{where}: no {key!r}{hint}")
    try:
        caption = clean_caption(record[caption_column])
    except TypeError as error:
        raise ValueError(f"{where}: {caption_column!r} {error}") from error
    return Row(_check_file_name(root, where, record["file_name"]), caption, where)


def _check_file_name(root: Path, where: str, name: object) -> str:
    """The name in its shortest form, once it is sure to stay inside the folder."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where}: file_name must be text, got {name!r:.80}")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ValueError(
            f"{where}: file_name {name!r} must be relative to the folder, without '..' or '\\'"
        )
    try:
        outside = leads_out(root, name)
    except ValueError as error:  # a NUL, or half of a surrogate pair
        raise ValueError(f"{where}: file_name {name!r} is no usable path: {error}") from error
    if outside:
        raise ValueError(f"{where}: file_name {name!r} leads out of the folder {root}")
    return path.as_posix()
