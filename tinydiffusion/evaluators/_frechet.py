"""The Fréchet distance between generated and reference features, as evaluators share it."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tinydiffusion.evaluators._statistics import Moments, frechet_distance
from tinydiffusion.evaluators._table import Table
from tinydiffusion.protocols import EvaluatorState, Score


class FrechetState:
    """Moments of both sources, the reference in two halves so that the floor is known too."""

    def __init__(self, dimensions: int) -> None:
        self.seen = {source: Table(source) for source in ("generated", "reference")}
        self.moments = {
            name: Moments.zeros(dimensions) for name in ("generated", "reference_a", "reference_b")
        }

    def update(self, source: str, ids: Int[Tensor, "N"], features: Float[Tensor, "N D"]) -> None:
        """Take in N pictures of one source."""
        self.seen[source].add(ids, {})
        if source == "generated":
            self.moments["generated"].add_(features)
        else:
            half = _first_half(ids).to(features.device)
            self.moments["reference_a"].add_(features[half])
            self.moments["reference_b"].add_(features[~half])

    def state(self) -> EvaluatorState:
        """Ids by concatenation, moments by sum."""
        state = self.seen["generated"].state() | self.seen["reference"].state()
        for name, moments in self.moments.items():
            for field, value in moments._asdict().items():
                state[f"{name}/{field}"] = (value, "sum")
        return state

    def load_state(self, state: EvaluatorState) -> None:
        """Take over a (merged) state."""
        for table in self.seen.values():
            table.load_state(state)
        for name in self.moments:
            fields = (state[f"{name}/{field}"][0].clone() for field in Moments._fields)
            self.moments[name] = Moments(*fields)

    def score(self, name: str, warnings: Sequence[str] = ()) -> Score:
        """The distance, and in `details` the floor: that between two halves of the reference.

        The halves are smaller than the whole, and the distance of small sets is biased upwards, so
        the floor is what a perfect model would reach with half as many pictures as the reference.
        """
        a, b = self.moments["reference_a"], self.moments["reference_b"]
        sizes = [int(a.n), int(b.n)]
        details = {
            "n_reference": sum(sizes),
            "floor": frechet_distance(a, b) if min(sizes) >= 2 else None,
            "floor_n": sizes,
        }
        value = frechet_distance(self.moments["generated"], a.merged(b))
        n = len(self.seen["generated"])
        return Score(name, value, n, higher_is_better=False, details=details, warnings=warnings)


def _first_half(ids: Int[Tensor, "N"]) -> Bool[Tensor, "N"]:
    """Which pictures go to the first half.

    Multiples of the golden ratio split any run of ids evenly and share no period with the order of
    the data, as odd and even ids might.
    """
    return torch.frac(ids.double() * 0.6180339887498949) < 0.5
