"""Tables of captions: `metadata.jsonl`, `metadata.csv` and `metadata.tsv`."""

import csv
import difflib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tinydiffusion.pictures.caption_files import USUAL
from tinydiffusion.pictures.captions import (
    Caption,
    caption_of,
    decode,
    lacks,
    parse_record,
    shown,
    texts_of,
    value_of,
)
from tinydiffusion.pictures.decode import is_picture_name

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.tsv")
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
MAX_LINE = 1 << 26  # most bytes of a line of metadata

Record = tuple[str, dict[str, Any]]  # file:line, and column -> value


class Row(NamedTuple):
    """The entry of one picture in a table."""

    file_name: str  # relative to the folder, with forward slashes
    caption: Caption  # empty where there is none
    fault: str  # file:line and why the caption cannot be read, else empty


class Table(NamedTuple):
    """A metadata file.

    Attributes:
        rows: One per picture; none where the file is not about pictures.
        columns: Names of all columns.
        fault: Why there are no rows.
        remarks: Harmless oddities.
    """

    rows: list[Row]
    columns: list[str]
    fault: str
    remarks: list[str]


def metadata_files(names: Iterable[str]) -> list[str]:
    """Return the metadata files among the names, sorted; upper and lower case are the same."""
    return sorted(name for name in names if name.lower() in METADATA_NAMES)


def near_metadata(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield files that may be meant as metadata, each with advice."""
    for path in sorted(map(PurePosixPath, names)):
        if path.name.lower() in METADATA_NAMES:
            if len(path.parts) > 1:
                yield str(path), "set path to its folder"
        elif path.suffix.lower() in USUAL or is_picture_name(path.name):
            continue
        elif near := difflib.get_close_matches(path.name.lower(), METADATA_NAMES, 1, cutoff=0.8):
            yield str(path), f"rename it to {near[0]}"


def read_table(path: Path, columns: Sequence[str]) -> Table:
    """Read the captions of a metadata file; several rows of one picture give it several captions.

    Args:
        path: File with a name of `METADATA_NAMES`.
        columns: Columns that may hold captions; the first one that exists is read.

    Raises:
        ValueError: a line is malformed, or a `file_name` is missing or leads out of the folder;
            names file and line.
    """
    remarks: list[str] = []
    is_json = path.suffix.lower() == ".jsonl"
    records = list(_json_records(path) if is_json else _csv_records(path, remarks))
    there = list(dict.fromkeys(key for _, record in records for key in record))
    if "file_name" not in there:
        fault = lacks("file_name", there) if there else "lists no pictures"
        return Table([], there, f"{path.name}: {fault}", remarks)
    column = next((name for name in columns if name in there), columns[0])
    if column != columns[0]:
        remarks.append(f"{path.name}: {lacks(columns[0], there)}; captions are its {column!r}")
    rows, repeated = _joined(_row(*record, column) for record in records)
    if repeated:
        remarks.append(f"{path.name}: {repeated} rows repeat the picture and caption of another")
    return Table(rows, there, "" if rows else f"{path.name}: lists no pictures", remarks)


def _joined(rows: Iterable[Row]) -> tuple[list[Row], int]:
    """Join the rows of each picture; return them with the number of rows that add nothing."""
    joined: dict[str, Row] = {}
    repeated = 0
    for row in rows:
        earlier = joined.setdefault(row.file_name, row)
        if earlier is row:
            continue
        texts = texts_of(earlier.caption)
        new = [text for text in texts_of(row.caption) if text not in texts]
        repeated += not new
        if new:
            caption = [*texts, *new] if texts else row.caption
            joined[row.file_name] = earlier._replace(caption=caption)
        if row.fault and not earlier.fault:
            joined[row.file_name] = joined[row.file_name]._replace(fault=row.fault)
    return list(joined.values()), repeated


def _row(where: str, record: dict[str, Any], column: str) -> Row:
    try:
        file_name = _check_file_name(value_of(record, "file_name"))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    try:
        return Row(file_name, caption_of(record, column), "")
    except ValueError as error:
        return Row(file_name, "", f"{where}: {error}")


def _check_file_name(name: object) -> str:
    """Check that a name stays inside the folder, and return it in its shortest form."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"file_name must be text, got {shown(repr(name)[:80])}")
    if re.match(r"[A-Za-z][\w+.-]*://", name):
        raise ValueError(f"file_name {name!r} is an address; download the picture")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or re.match(r"~[^/]*/|[A-Za-z]:|.*\\", name, re.S):
        raise ValueError(
            f"file_name {name!r} must be relative to the folder, without '..', '~', a drive or '\\'"
        )
    try:
        usable = b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:  # half of a surrogate pair
        usable = False
    if not usable:
        raise ValueError(f"file_name {name!r:.200} is no usable path")
    return path.as_posix()


# ---- lines and records -----------------------------------------------------------------------


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield each line with its place; only a line feed ends one, as captions may hold others."""
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


def _json_records(path: Path) -> Iterator[Record]:
    for where, line in _lines(path):
        if not line.strip():
            continue
        try:
            yield where, parse_record(line)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def _csv_records(path: Path, remarks: list[str]) -> Iterator[Record]:
    """Yield the records of a table; one empty record for a table that is not about pictures."""
    csv.field_size_limit(MAX_LINE)  # for the process; an overlong caption is skipped, not an error
    delimiter = _delimiter(path, remarks)
    reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    header: list[str] = []
    start = 1  # line where a record begins; a quoted text may span several
    try:
        for fields in reader:
            where, start = f"{path}:{start}", reader.line_num + 1
            if not header:
                header = _check_header(where, fields)
            elif "file_name" not in header:
                yield where, dict.fromkeys(header)
                return
            elif fields:
                yield where, _record(where, header, fields, DELIMITERS[delimiter])
    except csv.Error as error:
        raise ValueError(f"{path}:{start}: not valid CSV: {error}") from error


def _check_header(where: str, header: list[str]) -> list[str]:
    if "file_name" in header and len(set(header)) < len(header):
        raise ValueError(f"{where}: a column comes twice")
    return header


def _record(where: str, header: list[str], fields: list[str], delimiters: str) -> dict[str, Any]:
    if len(fields) != len(header):
        raise ValueError(
            f"{where}: {len(fields)} fields where the header has {len(header)}; "
            f'put "double quotes" around text with {delimiters}'
        )
    return dict(zip(header, fields, strict=True))


def _delimiter(path: Path, remarks: list[str]) -> str:
    """Return the column delimiter: an unusual one only where it alone yields `file_name`."""
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    header = next((line for _, line in _lines(path) if line.strip()), "").strip("\r\n")
    splitting = [d for d in DELIMITERS if "file_name" in _split(header, d)]
    if usual in splitting or len(splitting) != 1:
        return usual
    found, expected = DELIMITERS[splitting[0]], DELIMITERS[usual]
    remarks.append(f"{path.name}: its columns are separated by {found}, not by {expected}")
    return splitting[0]


def _split(header: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([header], delimiter=delimiter), [])
    except csv.Error:  # reading the table reports where
        return []
