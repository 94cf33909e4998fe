"""What every text encoder asks of captions before it tokenizes them."""

from collections.abc import Iterable

MAX_CHARACTERS = 4096
"""Text beyond this is cut unread, so that a caption of megabytes costs no more than a page."""


def check_captions(captions: Iterable[str]) -> list[str]:
    """The captions as a list.

    Raises:
        ValueError: one string in place of a list, which would be read letter by letter.
    """
    if isinstance(captions, str):
        raise ValueError(f"captions must be a list of strings, got the string {captions[:40]!r}")
    return list(captions)
