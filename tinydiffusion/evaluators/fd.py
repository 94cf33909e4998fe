"""Fréchet distance in the features of any extractor, which its row names."""

from typing import Any

from tinydiffusion.metrics.features import chosen_extractor
from tinydiffusion.metrics.frechet import FrechetEvaluator


class FrechetDistance(FrechetEvaluator):
    """Fréchet distance between generated and reference features; 0 is best.

    Args:
        extractor: Name of a feature extractor, or `{name: ..., options}`.
        weights: Weights file of the extractor.
        allow_unverified: Accept another file than the genuine one, and flag the score.

    Raises:
        ValueError: the extractor cannot be made with these options.
    """

    def __init__(
        self,
        *,
        extractor: str | dict[str, Any],
        weights: str | None = None,
        allow_unverified: bool = False,
    ) -> None:
        chosen = chosen_extractor(extractor, weights=weights, allow_unverified=allow_unverified)
        super().__init__(f"fd[{chosen.spec()['name']}]", chosen)


PLUGIN = FrechetDistance
