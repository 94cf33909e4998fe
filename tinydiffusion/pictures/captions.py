"""Captions: decoding from bytes and JSON, cleaning, replacing of invalid characters."""

import json
import re
from typing import Any

from tinydiffusion.registry import suggest

MAX_CAPTION_LENGTH = 10_000  # characters; a longer text is not a caption

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
SURROGATE = re.compile(r"[\ud800-\udfff]")
SPECIAL_TOKEN = re.compile(r"<\|?(start|end)_?of_?text\|?>", re.IGNORECASE)

Caption = str | list[str]


def clean_caption(value: object) -> Caption:
    """Strip surrounding blanks from a caption, or from a list of captions to draw from.

    Returns:
        The caption or list; empty for None, a blank caption and a list of blank ones.

    Raises:
        TypeError: the value is neither text, nor a list of texts, nor None.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return _strip(value)
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return [text for text in map(_strip, value) if text]
    raise TypeError(f"must be text or a list of texts, got {shown(repr(value)[:80])}")


def mend_caption(caption: Caption) -> tuple[Caption, list[str]]:
    """Replace invalid characters in a caption; return it with notes on what was found."""
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
    """Escape unprintable characters, so that text fits on one line of any terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def decode(content: bytes) -> str:
    """Decode UTF-8 bytes, with or without a byte order mark.

    Raises:
        ValueError: the bytes are not UTF-8 text; has the offset of the first bad byte.
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
    """Parse a JSON text that holds one object.

    Raises:
        ValueError: the text is not valid JSON, not an object, or holds a key twice.
    """
    try:
        record = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"must be an object {{...}}, got {shown(text.strip()[:80])}")
    return record


def caption_of(record: dict[str, Any], column: str) -> Caption:
    """Return the cleaned caption of a record.

    Raises:
        ValueError: there is no such column, or it does not hold text.
    """
    try:
        return clean_caption(value_of(record, column))
    except TypeError as error:
        raise ValueError(f"{column!r} {error}") from error


def _strip(text: str) -> str:
    """Strip surrounding blanks; return empty text where no visible character is left."""
    text = text.strip()
    return text if any(c.isprintable() and c != " " for c in text) else ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(record := dict(pairs)) < len(pairs):
        raise ValueError("a key comes twice")
    return record


def value_of(record: dict[str, Any], key: str) -> Any:
    """Return the value of a column of a record.

    Raises:
        ValueError: there is no such column; lists those that exist.
    """
    if key not in record:
        raise ValueError(lacks(key, list(record)))
    return record[key]


def lacks(key: str, columns: list[str]) -> str:
    """Return the message that a column does not exist, with those that do."""
    return f"no {key!r}{suggest(key, columns)}; it has {', '.join(map(repr, columns)):.200}"


def texts_of(caption: Caption) -> list[str]:
    """Return the captions of a picture as a list, whether it has one, several or none."""
    return list(filter(None, [caption] if isinstance(caption, str) else caption))
