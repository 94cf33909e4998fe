"""Checks of captions that every text encoder makes before it tokenizes them."""

from collections.abc import Iterable

MAX_CHARACTERS = 4096
"""Longer captions are cut, so that a caption of megabytes costs no more than a page."""


def check_captions(captions: Iterable[str]) -> list[str]:
    """Return the captions as a list.

    Raises:
        ValueError: captions is one string, which would be read letter by letter.
    """
    if isinstance(captions, str):
        raise ValueError(f"captions must be a list of strings, got the string {captions[:40]!r}")
    return list(captions)
