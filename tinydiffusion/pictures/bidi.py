"""Directions of text: a short form of the Unicode bidirectional algorithm (UAX 9).

Without embeddings, and for whole runs only: Raqm orders the letters within a run of one direction.
"""

import re
import unicodedata
from collections.abc import Sequence
from itertools import groupby

CLASSES = {"L": "L", "R": "R", "AL": "R", "AN": "R", "EN": "D"}
"""Bidirectional class -> left to right (L), right to left (R), digit (D); others: neutral (N)."""


def is_rtl(text: str) -> bool:
    """Return whether the first letter with a direction runs from right to left (rules P2, P3)."""
    strong = (d for d in map(unicodedata.bidirectional, text) if d in ("L", "R", "AL"))
    return next(strong, "L") != "L"


def directions(characters: Sequence[str], rtl: bool) -> list[bool]:
    """Return for each character whether it runs from right to left.

    A digit has the direction of the letter before it (W7), a neutral character that of its
    neighbours where they agree (N1), else that of the whole text (N2).

    Args:
        characters: In logical order.
        rtl: Whether the whole text runs from right to left.
    """
    whole = "R" if rtl else "L"
    found = "".join(CLASSES.get(unicodedata.bidirectional(c), "N") for c in characters)
    found = f"{whole}{found}{whole}"
    found = re.sub("R[ND]+", lambda match: match[0].replace("D", "R"), found).replace("D", "L")
    found = re.sub("(?<=R)N+(?=R)", lambda match: "R" * len(match[0]), found)
    found = re.sub("(?<=L)N+(?=L)", lambda match: "L" * len(match[0]), found)
    return [d == "R" for d in found.replace("N", whole)[1:-1]]


def visual_order(runs: Sequence[bool], rtl: bool) -> list[int]:
    """Return the order of the runs of a line from left to right (rule L2).

    Args:
        runs: Whether each one runs from right to left, in logical order.
        rtl: Whether the whole text runs from right to left.

    Returns:
        Indices into `runs`.
    """
    groups = [list(group) for _, group in groupby(range(len(runs)), lambda place: runs[place])]
    groups = [group[::-1] if runs[group[0]] else group for group in groups]
    return [place for group in (groups[::-1] if rtl else groups) for place in group]
