"""Optional abilities of a data set; `protocols.Dataset` is what every one must do.

A data set that has these methods has the ability.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

import torch

from tinydiffusion.protocols import Dataset, Example


@runtime_checkable
class Augmented(Protocol):
    """A data set that draws something anew at every visit (crop, flip)."""

    def augment(self, index: int, generator: torch.Generator) -> Example:
        """The example as training sees it; all randomness comes from `generator`."""
        ...


@runtime_checkable
class Streaming(Protocol):
    """A data set too large to be read in any order: near pictures come at near times.

    `visit` takes the place of `__getitem__` and `augment` in training. A process asks for its own
    places only, which mostly grow; what it is told must not depend on what it has asked before.
    """

    def visit(self, order_seed: int, place: int, generator: torch.Generator) -> Example:
        """The example at `place`, in [0, len), of the epoch that `order_seed` shuffles.

        Every example comes once per epoch. All other randomness (crop, flip) comes from
        `generator`.
        """
        ...


@runtime_checkable
class Captioned(Protocol):
    """A data set that can tell its captions without its pictures."""

    def captions(self) -> Iterable[str]:
        """Every caption of every example, of lists too."""
        ...


@runtime_checkable
class Selective(Protocol):
    """A data set that may leave pictures out."""

    def describe_skipped(self) -> str:
        """How many were left out for which reason; empty where none was."""
        ...


@runtime_checkable
class Divisible(Protocol):
    """A data set that can be divided by the content of its pictures."""

    def divided(self, fraction: float) -> "tuple[Dataset, Dataset]":
        """All pictures but about this fraction, and these.

        Equal pictures come to the same side, and a picture keeps its side when others are added.

        Raises:
            ValueError: one side would be empty, or it cannot be told apart.
        """
        ...


@runtime_checkable
class Fingerprinted(Protocol):
    """A data set that can name every example's content cheaply.

    A resumed run compares it with what it was and says which examples were added, removed or
    edited; of other data sets it looks at a sample.
    """

    def fingerprints(self) -> Mapping[str, str]:
        """Example id -> SHA-256 of its captions and pixels, in the data set's order."""
        ...
