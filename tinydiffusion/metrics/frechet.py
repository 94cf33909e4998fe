"""The Fréchet distance between generated and reference features, shared by evaluators."""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tinydiffusion.metrics.features import Shared
from tinydiffusion.metrics.provenance import provenance, unverified
from tinydiffusion.metrics.statistics import (
    Moments,
    frechet_distance,
    frechet_distance_of_features,
    student_quantile,
)
from tinydiffusion.metrics.table import Table, check_pictures
from tinydiffusion.protocols import EvalBatch, EvaluatorState, Score

NUM_FOLDS = {"generated": 6, "reference": 2}

Folds = tuple[int, ...]


class FrechetEvaluator:
    """Base of evaluators that are a Fréchet distance in some extractor's features; 0 is best.

    The 95 % interval covers what as many other pictures of the same model would give, with the
    reference fixed: a jackknife over six folds of the generated pictures. `details["floor"]` is the
    distance between two halves of the reference: what perfect pictures would reach at the sizes
    `floor_n`. The distance is biased upwards by an amount that depends on both sizes, so that only
    `details["at_floor_n"]` may be compared with the floor: the distance between generated and
    reference pictures at about the floor's sizes.

    Args:
        name: Name of the row.
        extractor: The extractor of the features.
    """

    needs: tuple[str, ...] = ("generated", "reference")

    def __init__(self, name: str, extractor: Shared) -> None:
        self.name, self.extractor = name, extractor
        self.sets = {
            source: FoldedFeatures(source, extractor.dimensions, NUM_FOLDS[source])
            for source in self.needs
        }

    def update(self, batch: EvalBatch) -> None:
        """Take in pictures of either source; those of others are ignored.

        Raises:
            ValueError: the pictures are not uint8 RGB, or one came before.
        """
        if batch["source"] in self.sets:
            check_pictures(batch["image"])
            self.sets[batch["source"]].add(batch["id"], self.extractor(batch["image"]))

    def state(self) -> EvaluatorState:
        """Return the state: ids and few features merge by concatenation, moments by sum."""
        return {key: part for each in self.sets.values() for key, part in each.state().items()}

    def load_state(self, state: EvaluatorState) -> None:
        """Load a (merged) state in place of the present one."""
        for each in self.sets.values():
            each.load_state(state)

    def compute(self) -> list[Score]:
        """Compute the one row of the metric.

        Raises:
            ValueError: there are fewer than two pictures of a source.
        """
        value = self._distance()
        n, n_reference = (len(each) for each in self.sets.values())
        details = {"n_reference": n_reference, **self._floor()}
        warnings = [*self._too_few(min(n, n_reference)), *unverified(self.extractor.spec())]
        return [
            Score(self.name, value, n, self._interval(value), False, details, warnings),
        ]

    def provenance(self) -> dict[str, Any]:
        """Return what makes the number comparable."""
        return provenance(self.extractor.spec())

    def _distance(self, generated: Folds | None = None, reference: Folds | None = None) -> float:
        """Compute the distance between these folds of the two sources; None takes all folds."""
        sets = self.sets["generated"].part(generated), self.sets["reference"].part(reference)
        return _distance(*sets)

    def _interval(self, value: float) -> tuple[float, float] | None:
        """Compute the jackknife interval over the generated folds; None where a fold is empty."""
        folds = range(NUM_FOLDS["generated"])
        if not all(self.sets["generated"].sizes()):
            return None
        without = [self._distance(tuple(f for f in folds if f != out)) for out in folds]
        spread = torch.tensor(without, dtype=torch.float64).var(correction=0).item()
        half = student_quantile(len(folds) - 1) * math.sqrt((len(folds) - 1) * spread)
        return max(0.0, value - half), value + half

    def _floor(self) -> dict[str, Any]:
        """Compute the distance between the reference's halves, and the value at those sizes."""
        reference, generated = self.sets["reference"], self.sets["generated"]
        sizes = reference.sizes()
        if min(sizes) < 2:
            return {"floor": None, "floor_n": sizes, "at_floor_n": None}
        share = sum(sizes) / 2 / len(generated)
        count = min(NUM_FOLDS["generated"], max(1, round(NUM_FOLDS["generated"] * share)))
        some = tuple(range(count))
        matched_n = sum(generated.sizes()[:count])
        matched = [self._distance(some, (half,)) for half in (0, 1)] if matched_n >= 2 else None
        return {
            "floor": _distance(reference.part((0,)), reference.part((1,))),
            "floor_n": sizes,
            "at_floor_n": matched and sum(matched) / 2,
            "at_floor_n_generated": matched_n,
        }

    def _too_few(self, n: int) -> list[str]:
        if n >= self.extractor.dimensions:
            return []
        return [
            f"{n} pictures for {self.extractor.dimensions} features: the value is biased "
            "upwards; compare it only with values at the same number of pictures"
        ]


class FoldedFeatures:
    """Features of one source in folds: fewer than D features as they are, more as moments.

    Memory is bounded for any number of pictures.
    """

    def __init__(self, source: str, dimensions: int, num_folds: int) -> None:
        self.source, self.dimensions = source, dimensions
        self.ids = Table(source)
        self.few = self._empty()
        self.moments = [Moments.zeros(dimensions) for _ in range(num_folds)]

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, ids: Int[Tensor, "N"], features: Float[Tensor, "N D"]) -> None:
        """Take in N pictures."""
        self.ids.add(ids, {})
        self.few.add(ids, {"features": features})
        self._condense()

    def sizes(self) -> list[int]:
        """Count the pictures in each fold."""
        every = _fold(self.ids.ids(), len(self.moments))
        return torch.bincount(every, minlength=len(self.moments)).tolist()

    def part(self, folds: Folds | None) -> "Moments | Float[Tensor, 'N D']":
        """Return the features of these folds (None: of all), or their moments if they are many."""
        folds = tuple(range(len(self.moments))) if folds is None else folds
        if len(self.few) or not len(self):
            return self._few_in(folds)
        return reduce(Moments.merged, [self.moments[fold] for fold in folds])

    def state(self) -> EvaluatorState:
        """Return the state: ids and few features merge by concatenation, moments by sum."""
        state = self.ids.state() | self.few.state()
        for field, values in zip(Moments._fields, zip(*self.moments, strict=True), strict=True):
            state[f"{self.source}/{field}"] = (torch.stack(values), "sum")
        return state

    def load_state(self, state: EvaluatorState) -> None:
        """Load a (merged) state in place of the present one."""
        self.ids.load_state(state)
        self.few.load_state(state)
        stacked = (state[f"{self.source}/{field}"][0] for field in Moments._fields)
        self.moments = [Moments(*(t.clone() for t in fold)) for fold in zip(*stacked, strict=True)]
        self._condense()

    def _condense(self) -> None:
        """Turn features into moments, unless all features are kept and they are fewer than D."""
        if not len(self.few) or len(self.few) == len(self) < self.dimensions:
            return
        for fold, moments in enumerate(self.moments):
            moments.add_(self._few_in((fold,)))
        self.few = self._empty()

    def _few_in(self, folds: Folds) -> Float[Tensor, "N D"]:
        fold = _fold(self.few.ids(), len(self.moments))
        kept = torch.isin(fold, torch.tensor(folds))
        return self.few.tensor("features").reshape(-1, self.dimensions)[kept]

    def _empty(self) -> Table:
        return Table(f"{self.source}/few", tensors=("features",))


def _distance(a: "Moments | Float[Tensor, 'N D']", b: "Moments | Float[Tensor, 'M D']") -> float:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return frechet_distance_of_features(a, b)
    return frechet_distance(_moments(a), _moments(b))


def _moments(part: "Moments | Float[Tensor, 'N D']") -> Moments:
    if isinstance(part, Moments):
        return part
    moments = Moments.zeros(part.shape[1])
    moments.add_(part)
    return moments


def _fold(ids: Sequence[int], num_folds: int) -> Int[Tensor, "N"]:
    """Assign each picture to a fold in [0, num_folds).

    Multiples of the golden ratio split any run of ids evenly and share no period with the order of
    the data, as odd and even ids might.
    """
    numbers = torch.tensor(ids, dtype=torch.float64)
    return (torch.frac(numbers * 0.6180339887498949) * num_folds).long()
