"""JSON from untrusted files: small, shallow, no key twice, every number finite."""

import json
import math
from typing import Any, NoReturn

MAX_BYTES = 2**22
MAX_DEPTH = 32


class JsonError(ValueError):
    """A text that is not the JSON of settings."""


def read_object(data: bytes) -> dict[str, Any]:
    """Read the keys and values of a JSON object.

    Raises:
        JsonError: the text is too long or too deep, not UTF-8, not JSON, not an object, or has a
            key twice or a number that is not finite.
    """
    if len(data) > MAX_BYTES:
        raise JsonError(f"more than {MAX_BYTES} bytes of JSON are no settings")
    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=_unique,
            parse_constant=_refuse,
            parse_float=_finite,
        )
    except RecursionError as error:
        raise JsonError(f"nested deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:
        raise JsonError(f"not the JSON of settings: {error}") from error
    if not isinstance(value, dict):
        raise JsonError(f"must be an object with keys and values, got a {type(value).__name__}")
    _check_depth(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise JsonError(f"the key {key[:40]!r} is given twice")
        values[key] = value
    return values


def _refuse(constant: str) -> NoReturn:
    raise JsonError(f"{constant} is not a number of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise JsonError(f"{text[:40]} is too large for a number")
    return number


def _check_depth(value: Any) -> None:
    """Check the depth, level by level, as recursion would reach Python's limit first."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    raise JsonError(f"nested deeper than {MAX_DEPTH} levels")


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
