"""Fréchet inception distance, TF1-compatible: the number that papers print."""

from typing import Any

from tinydiffusion.evaluators._features import shared_extractor
from tinydiffusion.evaluators._frechet import FrechetState
from tinydiffusion.evaluators._provenance import provenance
from tinydiffusion.protocols import EvalBatch, EvaluatorState, Score


class FID:
    """Fréchet inception distance between generated and reference pictures; 0 is best.

    Heusel et al. (2017), https://arxiv.org/abs/1706.08500, with the original network and its TF1
    resize, so that the value equals torch-fidelity's. `details["floor"]` is the distance between
    two halves of the reference.

    Args:
        weights: Inception weights file; None downloads the genuine one once.
        allow_unverified: Accept another file than the genuine one, and flag the score.

    Raises:
        ValueError: the weights are missing or are not the genuine ones.
    """

    needs = ("generated", "reference")

    def __init__(self, *, weights: str | None = None, allow_unverified: bool = False) -> None:
        self.extractor = shared_extractor(
            "inception", weights=weights, allow_unverified=allow_unverified
        )
        self.sums = FrechetState(self.extractor.dimensions)

    def update(self, batch: EvalBatch) -> None:
        """Take in pictures of either source."""
        self.sums.update(batch["source"], batch["id"], self.extractor(batch["image"]))

    def state(self) -> EvaluatorState:
        """Ids and moments."""
        return self.sums.state()

    def load_state(self, state: EvaluatorState) -> None:
        """Take over a (merged) state."""
        self.sums.load_state(state)

    def compute(self) -> list[Score]:
        """One row, `fid`."""
        return [self.sums.score("fid", self._warnings())]

    def provenance(self) -> dict[str, Any]:
        """What makes the number comparable."""
        return provenance(self.extractor.spec(), "torch-fidelity")

    def _warnings(self) -> list[str]:
        warnings = []
        n = min(len(table) for table in self.sums.seen.values())
        if n < self.extractor.dimensions:
            warnings.append(
                f"{n} pictures for {self.extractor.dimensions} features: the value is biased "
                "upwards; compare it only with values at the same number of pictures"
            )
        if not self.extractor.spec()["verified"]:
            warnings.append("not the FID Inception weights: compare it with no other FID")
        return warnings


PLUGIN = FID
