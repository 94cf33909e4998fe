"""Fréchet distance on small pictures: needs no weights, compares layout and colour only."""

from typing import Any

from tinydiffusion.evaluators._features import shared_extractor
from tinydiffusion.evaluators._frechet import FrechetState
from tinydiffusion.evaluators._provenance import provenance
from tinydiffusion.protocols import EvalBatch, EvaluatorState, Score


class PixelFD:
    """Fréchet distance between generated and reference pictures averaged to size x size pixels.

    Values are in [0, 1] per pixel; 0 is best. Not a FID: it sees no texture and no objects.
    `details["floor"]` is the distance between two halves of the reference.

    Args:
        size: Side of the grid that pictures are averaged to, in [1, 32].
    """

    needs = ("generated", "reference")

    def __init__(self, *, size: int = 8) -> None:
        if not 1 <= size <= 32:  # the covariance has (3 size²)² entries
            raise ValueError(f"size must be in [1, 32], got {size}")
        self.extractor = shared_extractor("pixels", size=size)
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
        """One row, `pixel_fd`."""
        return [self.sums.score("pixel_fd")]

    def provenance(self) -> dict[str, Any]:
        """What makes the number comparable."""
        return provenance(self.extractor.spec())


PLUGIN = PixelFD
