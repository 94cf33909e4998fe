"""Several data sets at once, each with its share of the pictures that are visited."""

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

    A fixed number of places: each set has as many of them as its weight asks for, and at least one
    per picture, so that every picture is visited in every epoch and a smaller set repeats, with
    window and mirroring drawn anew. Example i is a function of i alone.

    Args:
        sets: What to mix, each as a config's `dataset` has it, with `name`, the options of that
            data set, and `weight`: the share of visited pictures relative to the other sets. None
            has a weight, which then are the numbers of pictures, or all have.
        size: Goes to every set that takes it and does not give its own; None leaves it to them.
        fit: Likewise.

    Raises:
        ValueError: a set that cannot be had (named by its key), a streaming one, weights for some
            sets only, weights that would repeat a set too often, or pictures of several shapes.
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
        """The example at a place, nothing random."""
        number, place = self._locate(index)
        part = self.parts[number]
        return self._named(number, place, part[place % len(part)])

    def augment(self, index: int, generator: torch.Generator) -> Example:
        """The example at a place as one visit sees it, where its set draws anything."""
        number, place = self._locate(index)
        part = self.parts[number]
        inner = place % len(part)
        example = part.augment(inner, generator) if isinstance(part, Augmented) else part[inner]
        return self._named(number, place, example)

    def captions(self) -> Iterator[str]:
        """Every caption of every set, once."""
        for part in self.parts:
            if isinstance(part, Captioned):
                yield from part.captions()
                continue
            for index in range(len(part)):
                caption = part[index]["caption"]
                yield from [caption] if isinstance(caption, str) else caption

    def describe_skipped(self) -> str:
        """How many pictures each set left out for which reason; empty where none was."""
        told = [
            (label, part.describe_skipped())
            for label, part in zip(self.labels, self.parts, strict=True)
            if isinstance(part, Selective)
        ]
        return "; ".join(f"{label}: {text}" for label, text in told if text)

    def fingerprints(self) -> dict[str, str]:
        """Name the content of every example by its SHA-256, set by set.

        Before each set stands its number of places; of a set that cannot name its examples, the
        SHA-256 of its options stands for them.
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
        """Hold out about this fraction of every set; the places follow.

        Raises:
            ValueError: a set that cannot be divided, or a side that would be empty.
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
        """Which set has the place, and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is not in [0, {len(self)})")
        number = bisect_right(self._ends, index)
        return number, index - self._ends[number] + self.counts[number]

    def _named(self, number: int, place: int, example: Example) -> Example:
        turn = place // len(self.parts[number])
        repeat = f" ({turn + 1})" if turn else ""
        return {**example, "id": f"{self.labels[number]}/{example['id']}{repeat}"}


def _build(number: int, section: Mapping[str, Any], common: Mapping[str, Any]) -> Dataset:
    """A set of the mixture, with the options that are given to all where it takes them."""
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
    """The weight of each set: as given, or its number of pictures."""
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
    """How many places each set has: its share, and the scarcest set each of its pictures once."""
    per_weight = max(length / weight for length, weight in zip(lengths, weights, strict=True))
    counts = [round(weight * per_weight) for weight in weights]
    if sum(counts) > MAX_LENGTH:
        raise ValueError(
            f"these weights repeat a small set until there are {sum(counts)} places, at most "
            f"{MAX_LENGTH} are allowed; bring the weights nearer to the numbers of pictures"
        )
    return counts


PLUGIN = MixtureDataset
