"""A pixel font of 5x5 cells: drawing of words, and reading of words by template matching."""

from functools import cache
from itertools import product

import numpy as np
from jaxtyping import Bool, Float32

LETTERS = 3
CELLS = 6 * LETTERS - 1
"""Width of a word in cells: five per letter, one between two letters."""

CELL_ASPECT = 1.5  # height of a cell / its width
WORD_ASPECT = 5 * CELL_ASPECT / CELLS  # height of a word / its width
MIN_SIDE = 32  # pixels of a picture with a word
MIN_WIDTH = 20  # pixels of a word
MIN_LETTER_FIT, MIN_LETTER_LEAD = 0.8, 0.05  # correlation with the best letter, and its lead
GOOD_FIT = 0.93  # mean correlation from which no better place is searched for
SHIFTS = (0.0, -0.25, 0.25)  # pixels by which a word is moved to find its best place

GLYPHS = {
    "A": "01110 10001 11111 10001 10001",
    "B": "11110 10001 11110 10001 11110",
    "C": "01111 10000 10000 10000 01111",
    "D": "11100 10010 10001 10010 11100",
    "E": "11111 10000 11110 10000 11111",
    "F": "11111 10000 11100 10000 10000",
    "G": "01111 10000 10111 10001 01111",
    "H": "10001 10001 11111 10001 10001",
    "I": "11111 00100 00100 00100 11111",
    "J": "00111 00010 00010 10010 01100",
    "K": "10001 10010 11100 10010 10001",
    "L": "10000 10000 10000 10000 11111",
    "M": "11011 10101 10101 10001 10001",
    "N": "10001 11001 10101 10011 10001",
    "O": "01110 10001 10001 10001 01110",
    "P": "11110 10001 10001 11110 10000",
    "Q": "01110 10001 10101 10010 01101",
    "R": "11110 10001 11110 10010 10001",
    "S": "01111 10000 01110 00001 11110",
    "T": "11111 00100 00100 00100 00100",
    "U": "10001 10001 10001 10001 01110",
    "V": "10001 10001 10001 01010 00100",
    "W": "10001 10001 10101 10101 11011",
    "X": "10001 01010 00100 01010 10001",
    "Y": "10001 01010 00100 00100 00100",
    "Z": "11111 00010 00100 01000 11111",
}
"""Letter -> its rows from the top. Each touches all four sides of its box, so that a word's box
determines its place and size; any two letters differ in at least four cells."""

ALPHABET = "".join(GLYPHS)

_WORDS = """
ACE ACT AIR ANT APE ARM ART ASH AXE BAG BAT BED BEE BOX BUS CAB CAP CAR CAT COW CUB CUP DAY DEN DIG
DOG DOT DRY EAR EGG ELF END EYE FAN FAQ FIG FIN FIX FLY FOG FOX FUN FUR GAS GEM GUM HAM HAT HEN HOP
HUB ICE INK IVY JAM JAR JET JOB JOY JUG KEY KID KIT LAB LEG LID LIP LOG MAP MIX MOP MUD MUG NAP NET
NUT OAK OAR OIL OWL PAN PEA PEN PIE PIG POT QUO RAT RED RIB RUG SAW SEA SKY SUN TAP TAX TEA TIN TOE
TOY TUB URN VAN VET VOW WAX WEB WIG YAK YAM ZAP ZEN ZIP ZOO
"""
WORDS = tuple(_WORDS.split())
"""The words of the data set."""

Mask = Float32[np.ndarray, "H W"]


def draw_word(text: str, x: float, y: float, radius: float, side: int) -> Mask:
    """Draw a word as a mask of a square picture.

    Args:
        text: Three letters from A to Z.
        x: Centre of the word's box from the left, in pixels.
        y: Centre of the word's box from the top, in pixels.
        radius: Half the width of the word, in pixels.
        side: Side of the picture, in pixels.

    Returns:
        Share of each pixel that the word covers, in [0, 1].
    """
    rows, columns = _grid(x, y, radius, side)
    blank = np.zeros((5, 1), np.float32)
    cells = [part for letter in text for part in (_glyphs()[ALPHABET.index(letter)], blank)]
    return rows @ np.hstack(cells[:-1]) @ columns.T


def soften(mask: Mask) -> Mask:
    """Blur a mask binomially, standard deviation 0.7 pixels, similar to edges that models draw."""
    padded = np.pad(mask, 1)
    rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4


def find_word(alpha: Mask) -> tuple[str, float, float, float] | None:
    """Read the word of a soft mask.

    The mask's box determines place and size. Near this place, each letter is the template with the
    highest correlation, which does not depend on how pale thin strokes are.

    Returns:
        Text, x, y and radius as for `draw_word`; None if there is no word.
    """
    (left, right), (top, bottom) = _extent(alpha.max(axis=0)), _extent(alpha.max(axis=1))
    radius = (right - left) / 2
    height = 2 * radius * WORD_ASPECT
    if 2 * radius < MIN_WIDTH or abs(bottom - top - height) > 0.2 * height:
        return None
    best, found = 0.0, None
    for dx, dy in product(SHIFTS, SHIFTS):
        place = ((left + right) / 2 + dx, (top + bottom) / 2 + dy, radius)
        fit, text = _read_letters(alpha, *place)
        if fit > best:
            best, found = fit, (text, *place)
        if best >= GOOD_FIT:
            break
    return found


def _read_letters(alpha: Mask, x: float, y: float, radius: float) -> tuple[float, str]:
    """Return the mean correlation of the best letters, and their text; 0 if one is not clear."""
    rows, columns = _grid(x, y, radius, alpha.shape[0])
    inside = _inside(rows)
    fits, text = [], ""
    for slot in range(LETTERS):
        own = columns[:, 6 * slot : 6 * slot + 5]
        near = _inside(own)
        part = alpha[inside][:, near]
        sharp = rows[inside] @ _glyphs() @ own[near].T
        soft = _blur(rows)[inside] @ _glyphs() @ _blur(own)[near].T
        fit = np.maximum(_correlations(part, sharp), _correlations(part, soft))
        second, first = np.argsort(fit)[-2:]
        if fit[first] < max(MIN_LETTER_FIT, fit[second] + MIN_LETTER_LEAD):
            return 0.0, ""
        fits.append(fit[first])
        text += ALPHABET[first]
    return float(np.mean(fits)), text


@cache
def _glyphs() -> Float32[np.ndarray, "26 5 5"]:
    rows = [[list(map(float, row)) for row in glyph.split()] for glyph in GLYPHS.values()]
    return np.array(rows, np.float32)


def _grid(
    x: float, y: float, radius: float, side: int
) -> tuple[Float32[np.ndarray, "side 5"], Float32[np.ndarray, "side cells"]]:
    """Return the share of each pixel row that each row of cells covers, and that for columns."""
    width = 2 * radius / CELLS
    height = CELL_ASPECT * width
    rows = _cover(y - 2.5 * height, height, 5, side)
    return rows, _cover(x - radius, width, CELLS, side)


def _cover(start: float, step: float, cells: int, side: int) -> Float32[np.ndarray, "side cells"]:
    """Return the overlap in length of each pixel i, [i, i + 1], with each of a row of cells."""
    low = start + step * np.arange(cells)
    pixels = np.arange(side)[:, None]
    shared = np.minimum(pixels + 1, low + step) - np.maximum(pixels, low)
    return shared.clip(0, 1).astype(np.float32)


def _blur(cover: Float32[np.ndarray, "side cells"]) -> Float32[np.ndarray, "side cells"]:
    padded = np.pad(cover, ((1, 1), (0, 0)))
    return (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4


def _inside(cover: Float32[np.ndarray, "side 5"]) -> Bool[np.ndarray, "side"]:
    """Return the pixels that a letter covers by at least half; gaps belong to no letter."""
    return cover.sum(axis=1) >= 0.5


def _correlations(
    part: Mask, templates: Float32[np.ndarray, "26 H W"]
) -> Float32[np.ndarray, "26"]:
    """Compute Pearson's correlation of a part of a picture with each template."""
    a = part.ravel() - part.mean()
    b = templates.reshape(len(templates), -1)
    b = b - b.mean(axis=1, keepdims=True)
    return b @ a / (np.linalg.norm(b, axis=1) * np.linalg.norm(a) + 1e-6)


def _extent(profile: Float32[np.ndarray, "side"]) -> tuple[float, float]:
    """Return the sub-pixel begin and end of a profile that is 1 inside and 0 outside."""
    inside = np.flatnonzero(profile >= 0.5)
    if not len(inside):
        return 0.0, 0.0
    padded = np.pad(profile, 1)  # padded[i + 1] is pixel i
    first, last = int(inside[0]), int(inside[-1])
    start = first + 1 - padded[first + 1] - padded[first]
    return float(start), float(last + padded[last + 1] + padded[last + 2])
