"""Labels under pictures: lines of a given width, in every script that has a font."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby, islice
from typing import NamedTuple

from PIL import Image

from tinydiffusion.pictures.bidi import directions, is_rtl, visual_order
from tinydiffusion.pictures.fonts import INVISIBLE, LINE_HEIGHT, Face, face_for

ELLIPSIS = "…"
MAX_LENGTH = 1000  # characters of a text, more than any label shows
JOINER = "\u200d"  # zero width joiner, in emoji and Indic scripts
VIRAMA = 9  # combining class of the sign that joins two Indic consonants
SKIN = re.compile("[\U0001f3fb-\U0001f3ff]")  # skin colours of the preceding emoji
FLAG = re.compile("[\U0001f1e6-\U0001f1ff]{2}")  # the two letters of a country


class Run(NamedTuple):
    """Characters that one font draws in one direction."""

    text: str
    face: Face
    rtl: bool


def clean(text: str) -> str:
    """Return text on one line, with composed marks, no control characters and limited length."""
    short = text if len(text) <= MAX_LENGTH else text[:MAX_LENGTH] + ELLIPSIS
    line = " ".join(unicodedata.normalize("NFC", short).split())
    return "".join(c for c in line if unicodedata.category(c) != "Cc")


def can_draw(text: str) -> bool:
    """Return whether every character has a font."""
    return all(face_for(cluster) for cluster in clusters(text))


def clusters(text: str) -> Iterator[str]:
    """Yield the parts of text that a reader sees as one sign, such as a letter with its marks."""
    cluster = ""
    for character in text:
        if cluster and not _belongs(character, cluster):
            yield cluster
            cluster = ""
        cluster += character
    if cluster:
        yield cluster


@lru_cache(maxsize=1024)
def wrap(text: str, width: int, max_lines: int) -> tuple[str, ...]:
    """Break text into lines; words wider than a line are broken, and excess lines are dropped.

    Args:
        text: Text whose characters all have a font.
        width: Width of a line, in pixels.
        max_lines: Most lines; the last one ends in an ellipsis where there is more text.
    """
    rtl = is_rtl(text)
    lines = list(islice(_lines(text.split(), width, rtl), max_lines + 1))
    if len(lines) > max_lines:
        lines[max_lines - 1 :] = [_shorten(lines[max_lines - 1], width, rtl)]
    return tuple(lines)


def draw_line(text: str, width: int, colour: str, rtl: bool) -> Image.Image:
    """Draw one line on white.

    Args:
        text: Text whose characters all have a font.
        width: Width of the picture, in pixels; its height is `LINE_HEIGHT`.
        colour: Colour of the letters.
        rtl: Whether the line belongs to a text from right to left.
    """
    line = Image.new("RGB", (width, LINE_HEIGHT), "white")
    logical = _runs(text, rtl)
    runs = [logical[place] for place in visual_order([run.rtl for run in logical], rtl)]
    widths = [run.face.width(run.text, run.rtl) for run in runs]
    left = width - sum(widths) if rtl else 0
    for run, run_width in zip(runs, widths, strict=True):
        run.face.draw(line, left, run.text, colour, run.rtl)
        left += run_width
    return line


# ---- lines -----------------------------------------------------------------------------------


def _lines(words: Sequence[str], width: int, rtl: bool) -> Iterator[str]:
    line = ""
    for word in words:
        longer = f"{line} {word}" if line else word
        if _width(longer, rtl) <= width:
            line = longer
            continue
        if line:
            yield line
        line = ""
        for cluster in clusters(word):
            if line and _width(line + cluster, rtl) > width:
                yield line
                line = ""
            line += cluster
    if line:
        yield line


def _shorten(line: str, width: int, rtl: bool) -> str:
    """Append an ellipsis to a line, and remove as much of its end as does not fit."""
    parts = list(clusters(line))
    while parts and _width("".join(parts) + ELLIPSIS, rtl) > width:
        parts.pop()
    return "".join(parts).rstrip() + ELLIPSIS


def _width(text: str, rtl: bool) -> int:
    return sum(run.face.width(run.text, run.rtl) for run in _runs(text, rtl))


def _runs(text: str, rtl: bool) -> list[Run]:
    """Split text into pieces of one font and one direction, in logical order."""
    parts = list(clusters(text))
    signs = zip(map(face_for, parts), directions([part[0] for part in parts], rtl), strict=True)
    runs = []
    for (face, run_rtl), group in groupby(zip(signs, parts, strict=True), lambda pair: pair[0]):
        assert face is not None, "only text that can be drawn is measured and drawn"
        runs.append(Run("".join(part for _, part in group), face, run_rtl))
    return runs


# ---- signs -----------------------------------------------------------------------------------


def _belongs(character: str, cluster: str) -> bool:
    """Return whether a character is drawn together with those before it."""
    if unicodedata.category(character)[0] == "M" or INVISIBLE.match(character):
        return True
    if SKIN.match(character):
        return True
    last = cluster[-1]
    is_flag = len(cluster) == 1 and FLAG.fullmatch(last + character) is not None
    return is_flag or last == JOINER or unicodedata.combining(last) == VIRAMA
