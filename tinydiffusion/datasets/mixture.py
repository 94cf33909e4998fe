"""A mixture of several data sets, each with its share of the pictures that are visited."""

import copy
import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch

from tinydiffusion import registry
from tinydiffusion.abilities import (
    Augmented,
    Captioned,
    Divisible,
    Fingerprinted,
    Selective,
    Streaming,
)
from tinydiffusion.protocols import Dataset, Example
from tinydiffusion.registry import PluginError

MAX_LENGTH = 100_000_000
OWN = ("name", "weight")  # keys of a set that are not options of its plug-in


class MixtureDataset(Augmented, Captioned, Selective, Divisible, Fingerprinted):
    """The pictures of several data sets, mixed by weight; ids are `name-number/id`.

    The number of places is fixed. Each set has places in proportion to its weight, and at least one
    per picture, so that every picture is visited in every epoch and a smaller set repeats, with
    window and mirroring drawn anew. Example i is a function of i alone.

    Args:
        sets: Sections like a config's `dataset`, each with `name`, the options of that data set,
            and `weight`: the share of visited pictures relative to the other sets. Either all sets
            have a weight, or none has; then the weights are the numbers of pictures.
        size: Default for every set that has this option and does not set it; None sets none.
        fit: Default for every set that has this option and does not set it; None sets none.

    Raises:
        ValueError: a set cannot be built (named by its key) or is a streaming one, only some sets
            have weights, weights would repeat a set too often, or pictures have several shapes.
    """

    def __init__(
        self,
        *,
        sets: Sequence[dict[str, Any]],
        size: int | Sequence[int] | None = None,
        fit: str | None = None,
    ) -> None:
        if not sets:
            raise ValueError("sets must name at least one data set, got none")
        given = {"size": size, "fit": fit}
        common = {key: value for key, value in given.items() if value is not None}
        self.parts = [_build(number, section, common) for number, section in enumerate(sets)]
        self.labels = [f"{section['name']}-{number}" for number, section in enumerate(sets)]
        _check_shapes(self.parts, self.labels)
        self.counts = _places([len(part) for part in self.parts], _weights(sets, self.parts))
        self._options = [hashlib.sha256(json.dumps(s).encode()).hexdigest() for s in sets]
        self._ends = list(accumulate(self.counts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        """Return the example at a place, with nothing random."""
        number, place = self._locate(index)
        part = self.parts[number]
        return self._named(number, place, part[place % len(part)])

    def augment(self, index: int, generator: torch.Generator) -> Example:
        """Return the example at a place for one visit, with the random choices of its set."""
        number, place = self._locate(index)
        part = self.parts[number]
        inner = place % len(part)
        example = part.augment(inner, generator) if isinstance(part, Augmented) else part[inner]
        return self._named(number, place, example)

    def captions(self) -> Iterator[str]:
        """Yield every caption of every set, once."""
        for part in self.parts:
            if isinstance(part, Captioned):
                yield from part.captions()
                continue
            for index in range(len(part)):
                caption = part[index]["caption"]
                yield from [caption] if isinstance(caption, str) else caption

    def describe_skipped(self) -> str:
        """Return the number of pictures that each set left out for each reason; empty if none."""
        told = [
            (label, part.describe_skipped())
            for label, part in zip(self.labels, self.parts, strict=True)
            if isinstance(part, Selective)
        ]
        return "; ".join(f"{label}: {text}" for label, text in told if text)

    def fingerprints(self) -> dict[str, str]:
        """Return example id -> SHA-256 of its content, set by set.

        The number of places of each set precedes its examples. A set without fingerprints has the
        SHA-256 of its options instead.
        """
        found: dict[str, str] = {}
        for number, part in enumerate(self.parts):
            label = self.labels[number]
            found[f"{label}: places"] = str(self.counts[number])
            if isinstance(part, Fingerprinted):
                found |= {f"{label}/{id_}": content for id_, content in part.fingerprints().items()}
            else:
                found[f"{label}: options"] = self._options[number]
        return found

    def divided(self, fraction: float) -> "tuple[MixtureDataset, MixtureDataset]":
        """Hold out about this fraction of every set, and divide its places in proportion.

        Returns:
            The mixture without the held-out pictures, and that of the held-out ones, each once.

        Raises:
            ValueError: a set cannot be divided, or a side would be empty.
        """
        sides = copy.copy(self), copy.copy(self)
        pairs = [self._divided_part(number, fraction) for number in range(len(self.parts))]
        for side, parts in zip(sides, zip(*pairs, strict=True), strict=True):
            side.parts = list(parts)
            side.counts = [
                max(len(part), round(count * len(part) / len(whole)))
                for part, count, whole in zip(parts, self.counts, self.parts, strict=True)
            ]
        sides[1].counts = list(map(len, sides[1].parts))  # a picture is measured once
        for side in sides:
            side._ends = list(accumulate(side.counts))
        return sides

    def _divided_part(self, number: int, fraction: float) -> tuple[Dataset, Dataset]:
        part = self.parts[number]
        if not isinstance(part, Divisible):
            raise ValueError(f"{self.labels[number]} cannot be divided by its pictures' content")
        return part.divided(fraction)

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the number of the set that has a place, and the place within the set."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is not in [0, {len(self)})")
        number = bisect_right(self._ends, index)
        return number, index - self._ends[number] + self.counts[number]

    def _named(self, number: int, place: int, example: Example) -> Example:
        turn = place // len(self.parts[number])
        repeat = f" ({turn + 1})" if turn else ""
        return {**example, "id": f"{self.labels[number]}/{example['id']}{repeat}"}


def _build(number: int, section: Mapping[str, Any], common: Mapping[str, Any]) -> Dataset:
    """Build a set of the mixture, with those of the common options that it has."""
    key = f"sets.{number}"
    name = section.get("name")
    if not isinstance(name, str):
        raise ValueError(f"{key}.name must be the name of a data set, got {name!r}")
    options = {k: v for k, v in section.items() if k not in OWN}
    try:
        plugin = registry.load("dataset", name)
        shared = {k: v for k, v in common.items() if registry.takes(plugin, k)}
        part = registry.create("dataset", name, **{**shared, **options})
    except (PluginError, ValueError) as error:
        raise ValueError(f"{key} ({name}): {error}") from error
    if isinstance(part, Streaming):
        raise ValueError(
            f"{key} ({name}): a streaming set is read in its own order; use tar or huggingface, or "
            "tinydiffusion pack one set of all pictures"
        )
    if not len(part):
        raise ValueError(f"{key} ({name}): the set is empty")
    return part


def _check_shapes(parts: Sequence[Dataset], labels: Sequence[str]) -> None:
    shapes = [tuple(part[0]["image"].shape) for part in parts]
    for label, (_, height, width) in zip(labels, shapes, strict=True):
        if (height, width) != shapes[0][1:]:
            raise ValueError(
                f"sets must give pictures of one size: {labels[0]} gives "
                f"{shapes[0][2]}x{shapes[0][1]}, {label} {width}x{height}; set size"
            )


def _weights(sets: Sequence[Mapping[str, Any]], parts: Sequence[Dataset]) -> list[float]:
    """Return the weight of each set: the given one, or its number of pictures."""
    given = [section.get("weight") for section in sets]
    if all(weight is None for weight in given):
        return [float(len(part)) for part in parts]
    weights = [w for w in given if isinstance(w, int | float) and 0 < w < math.inf]
    if len(weights) < len(given):
        number = next(n for n, weight in enumerate(given) if weight not in weights)
        raise ValueError(
            f"sets.{number}.weight must be a number above 0, got {given[number]!r}; where one set "
            "has a weight, all have"
        )
    return [float(weight) for weight in weights]


def _places(lengths: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Return the number of places of each set by weight; the scarcest set has one per picture."""
    per_weight = max(length / weight for length, weight in zip(lengths, weights, strict=True))
    counts = [round(weight * per_weight) for weight in weights]
    if sum(counts) > MAX_LENGTH:
        raise ValueError(
            f"these weights repeat a small set until there are {sum(counts)} places, at most "
            f"{MAX_LENGTH} are allowed; bring the weights nearer to the numbers of pictures"
        )
    return counts


PLUGIN = MixtureDataset
