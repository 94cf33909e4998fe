"""Fonts for labels: a bundled one for Latin, Greek and Cyrillic, else those of the machine."""

import math
import re
import subprocess
import unicodedata
from bisect import bisect_right
from functools import cache, cached_property
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

SIZE = 12  # pixels per em
LINE_HEIGHT = 17  # pixels
BASELINE = 13  # pixels below the top of a line
BITMAP_SIZE = 109  # pixels per em of the colour bitmaps of emoji fonts, their only size
SEARCH_SECONDS = 20.0  # longest search; the first on a machine reads all of its fonts

BUNDLED_FILE = Path(__file__).with_name("font_files") / "DejaVuSans-subset.ttf"
BUNDLED_CHARSET = (
    "20-7e a0-2e9 2ec-2ee 2f3 2f7 300-34e 370-377 37a-37f 384-38a 38c 38e-3a1 3a3-525 1e00-1efb "
    "1f00-1f15 1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57 1f59 1f5b 1f5d 1f5f-1f7d 1f80-1fb4 "
    "1fb6-1fc4 1fc6-1fd3 1fd6-1fdb 1fdd-1fef 1ff2-1ff4 1ff6-1ffe 2010-2027 2030-2044 20a0-20b5 "
    "20b8-20ba 20bd 2116 2122 2190-2193 2212 221e 2248 2260 2264-2265 fffd"
)

INVISIBLE = re.compile(  # characters that HarfBuzz hides where a font has no glyph for them
    "[\u00ad\u034f\u061c\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff0-\ufff8"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
ONLY_BOXES = re.compile("last.?resort", re.IGNORECASE)  # fonts that have a box for everything
EMOJI = re.compile("[\U0001f000-\U0001faff]|\ufe0f")


class Face:
    """One font of a font file, with the set of its characters.

    Args:
        file: Path of the font file.
        index: Index of the font in the file.
        charset: Ranges of characters in hexadecimal, as fontconfig writes them: "20-7e a0".
    """

    def __init__(self, file: str, index: int, charset: str) -> None:
        self.file, self.index, self.charset = file, index, charset

    def can_draw(self, cluster: str) -> bool:
        """Return whether the font has all characters, can be opened and draws them visibly."""
        visible = INVISIBLE.sub("", cluster)
        if not all(map(self._has, visible)):
            return False
        try:
            return not visible.strip() or self._leaves_ink(cluster)
        except OSError:  # a deleted file, or a format that Pillow does not read
            return False

    def width(self, text: str, rtl: bool = False) -> int:
        """Return the width of text on one line, in pixels."""
        length = self._font.getlength(_fit(text), direction=_direction(rtl))
        return math.ceil(length * self._scale)

    def draw(self, line: Image.Image, left: int, text: str, colour: str, rtl: bool = False) -> None:
        """Draw text into a line.

        Args:
            line: Picture to draw into, `LINE_HEIGHT` pixels high.
            left: Distance from its left side, in pixels.
            text: Text in logical order.
            colour: Colour of the letters; colour fonts keep their own.
            rtl: Whether the text runs from right to left.
        """
        if self._scale == 1:
            self._write(line, left, BASELINE, text, colour, rtl)
            return
        width, height = self.width(text, rtl), LINE_HEIGHT
        natural = (math.ceil(width / self._scale), math.ceil(height / self._scale))
        large = Image.new("RGB", natural, "white")
        self._write(large, 0, round(BASELINE / self._scale), text, colour, rtl)
        line.paste(large.resize((width, height), Image.Resampling.LANCZOS), (left, 0))

    def _write(
        self, image: Image.Image, left: int, baseline: int, text: str, colour: str, rtl: bool
    ) -> None:
        ImageDraw.Draw(image).text(
            (left, baseline),
            _fit(text),
            colour,
            self._font,
            anchor="ls",
            direction=_direction(rtl),
            embedded_color=True,
        )

    @cached_property
    def _font(self) -> ImageFont.FreeTypeFont:
        engine = ImageFont.Layout.RAQM if shapes() else ImageFont.Layout.BASIC
        try:
            return ImageFont.truetype(self.file, SIZE, self.index, layout_engine=engine)
        except OSError:
            return ImageFont.truetype(self.file, BITMAP_SIZE, self.index, layout_engine=engine)

    @property
    def _scale(self) -> float:
        return SIZE / self._font.size

    @cached_property
    def _bounds(self) -> list[int]:
        """Return the code of the first character of each range and of the one after its last."""
        ranges = [part.split("-") for part in self.charset.split()]
        return [n for r in ranges for n in (int(r[0], 16), int(r[-1], 16) + 1)]

    def _has(self, character: str) -> bool:
        return bisect_right(self._bounds, ord(character)) % 2 == 1

    def _leaves_ink(self, cluster: str) -> bool:
        """Return whether drawing the cluster changes any pixel.

        Fonts with vector colours, which Pillow does not draw, have glyphs without an outline.
        """
        line = Image.new("RGB", (self.width(cluster) + 2 * LINE_HEIGHT, LINE_HEIGHT), "white")
        self.draw(line, LINE_HEIGHT, cluster, "black")
        return line.convert("L").getextrema() != (255, 255)


BUNDLED = Face(str(BUNDLED_FILE), 0, BUNDLED_CHARSET)


@cache
def face_for(cluster: str) -> Face | None:
    """Return the font that draws a character and its marks; None where no font does."""
    if not shapes() and _needs_shaping(cluster):
        return None
    if BUNDLED.can_draw(cluster):
        return BUNDLED
    faces = machine_faces("emoji" if EMOJI.search(cluster) else "sans-serif")
    return next((face for face in faces if face.can_draw(cluster)), None)


@cache
def machine_faces(family: str) -> tuple[Face, ...]:
    """Return the machine's fonts from fontconfig, those nearest to a family first.

    Returns:
        The fonts; empty where fontconfig is not installed or exceeds `SEARCH_SECONDS`.
    """
    layout = "%{file}\t%{index}\t%{charset}\n"
    command = ["fc-match", "--sort", "--format", layout, family]
    try:
        found = subprocess.run(
            command, capture_output=True, check=True, timeout=SEARCH_SECONDS, encoding="utf-8",
            errors="surrogateescape",
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [line.split("\t") for line in found.stdout.splitlines()]
    return tuple(
        Face(row[0], int(row[1]), row[2])
        for row in rows
        if len(row) == 3 and not ONLY_BOXES.search(row[0])
    )


def shapes() -> bool:
    """Return whether Pillow joins letters, places marks and writes from right to left (Raqm)."""
    return bool(features.check("raqm"))


def _needs_shaping(cluster: str) -> bool:
    return any(
        unicodedata.bidirectional(c) in ("R", "AL", "AN") or unicodedata.category(c)[0] == "M"
        for c in INVISIBLE.sub("", cluster)
    )


def _fit(text: str) -> str:
    """Remove invisible characters where Pillow, without Raqm, would draw them as boxes."""
    return text if shapes() else INVISIBLE.sub("", text)


def _direction(rtl: bool) -> str | None:
    if not shapes():
        return None
    return "rtl" if rtl else "ltr"
