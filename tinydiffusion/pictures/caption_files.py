"""Caption files beside pictures: `a.txt`, `a.caption` or `a.json` for `a.png`."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tinydiffusion.pictures.captions import (
    MAX_CAPTION_LENGTH,
    Caption,
    caption_of,
    clean_caption,
    decode,
    lacks,
    parse_record,
    shown,
)

SIDECARS = (".txt", ".caption", ".json")
USUAL = (".txt", ".caption")
JSON_KEYS = ("caption", "text", "prompt")
MAX_JSON = 1 << 20  # bytes
NO_CAPTION, EMPTY = "without caption", "with an empty caption file"

Index = Mapping[str, Sequence[str]]  # name without its last suffix -> caption files


class Beside(NamedTuple):
    """The caption file beside a picture."""

    caption: Caption  # empty where there is none
    fault: str  # why there is no caption, else empty
    file: str  # name of the file that was read, empty where none was
    keys: Sequence[str] = ()  # keys of the object in a JSON file


def index_caption_files(names: Iterable[str]) -> Index:
    """Group the caption files of a folder by name without suffix, which that of a picture has."""
    index: dict[str, list[str]] = {}
    for path in map(PurePosixPath, sorted(names)):
        if path.suffix.lower() in SIDECARS:
            index.setdefault(str(path.with_suffix("")), []).append(str(path))
    return index


def read_beside(root: Path, picture: str, index: Index, columns: Sequence[str]) -> Beside:
    """Read the caption file of a picture; a text file takes precedence over JSON.

    Args:
        root: Folder that names are relative to.
        picture: Name of the picture.
        index: From `index_caption_files`.
        columns: JSON keys that may hold the caption; the first one that exists is read.
    """
    stem = str(PurePosixPath(picture).with_suffix(""))
    files = [*index.get(stem, ()), *index.get(picture, ())]
    chosen = [file for file in files if not _is_json(file)] or files
    if not chosen:
        return Beside("", NO_CAPTION, "")
    if len(chosen) > 1:
        return Beside("", f"with two captions: {' and '.join(map(shown, chosen))}", "")
    file = chosen[0]
    record: dict[str, Any] = {}
    try:
        if _is_json(file):
            record = _read_record(root / file)
            caption = _caption_in(root / file, record, columns)
        else:
            caption = _read_text(root / file)
    except ValueError as error:
        return Beside("", str(error), file, list(record))
    return Beside(caption, "" if caption else f"{EMPTY}: {shown(file)}", file, list(record))


def describe_near_names(read: Mapping[str, str]) -> list[str]:
    """Describe caption files that are not named like `a.txt` or `a.caption`.

    Args:
        read: Picture -> caption file that was read.

    Returns:
        One remark for each kind of name.
    """
    kinds: dict[tuple[str, bool], list[str]] = {}
    for picture, file in read.items():
        stem, suffix = str(PurePosixPath(file).with_suffix("")), PurePosixPath(file).suffix
        if suffix not in USUAL or stem == picture:
            kinds.setdefault((suffix, stem == picture), []).append(file)
    return [
        f"captions of {len(files)} pictures are in files like {shown(files[0])}"
        for files in kinds.values()
    ]


def _is_json(file: str) -> bool:
    return file.lower().endswith(".json")


def _read_text(path: Path) -> Caption:
    """Read a whole file as one caption; raise ValueError if it is over `MAX_CAPTION_LENGTH`."""
    content = _read(path, 4 * (MAX_CAPTION_LENGTH + 2))
    if content is None:  # not decoded: the cut may be inside a character
        raise ValueError(f"with a caption over {MAX_CAPTION_LENGTH} characters")
    return clean_caption(_decode(path, content))


def _read_record(path: Path) -> dict[str, Any]:
    content = _read(path, MAX_JSON)
    if content is None:
        raise ValueError(f"unreadable caption: {path.name} has over {MAX_JSON} bytes")
    text = _decode(path, content)
    try:
        return parse_record(text)
    except ValueError as error:
        raise ValueError(f"unreadable caption: {path.name}: {error}") from error


def _caption_in(path: Path, record: dict[str, Any], columns: Sequence[str]) -> Caption:
    """Return the caption under the first column that exists, else under the only usual key."""
    keys = [key for key in columns if key in record][:1]
    keys = keys or [key for key in JSON_KEYS if key in record]
    try:
        if len(keys) != 1:
            reason = f"has {' and '.join(keys)}" if keys else lacks(columns[0], list(record))
            raise ValueError(f"{reason}; say which key it is with caption_column")
        return caption_of(record, keys[0])
    except ValueError as error:
        raise ValueError(f"unreadable caption: {path.name}: {error}") from error


def _decode(path: Path, content: bytes) -> str:
    try:
        return decode(content)
    except ValueError as error:
        raise ValueError(f"unreadable caption: {path.name} is {error}") from error


def _read(path: Path, most: int) -> bytes | None:
    """Read a file of at most `most` bytes; return None if it is longer."""
    try:
        if not path.is_file():  # opening a pipe would block for ever
            raise ValueError(f"no caption: {path.name} is missing or not a file")
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise ValueError(f"unreadable caption: {path.name}: {error.strerror}") from error
    return content if len(content) <= most else None
