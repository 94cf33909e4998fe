"""Inception score: does the Inception see something definite, and something else each time?"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tinydiffusion.metrics.features import FeatureRows, shared_extractor
from tinydiffusion.metrics.provenance import unverified
from tinydiffusion.metrics.statistics import student_interval
from tinydiffusion.protocols import Score


class InceptionScore(FeatureRows):
    """exp of the mean KL divergence of each picture's classes from the mean's; from 1 up.

    Salimans et al. (2016), section 4, https://arxiv.org/abs/1606.03498: the mean over splits of
    the shuffled pictures, equal to torch-fidelity's. It looks at no reference and says little of
    pictures unlike ImageNet's. The 95 % interval is over the splits, at their size, on which the
    value depends.

    Args:
        weights: Inception weights file; None downloads the genuine one once.
        allow_unverified: Accept another file than the genuine one, and flag the score.
        splits: Into how many parts, at least 1.
        seed: Of the order.

    Raises:
        ValueError: an option is out of range, or the weights are missing or not genuine.
    """

    needs = ("generated",)

    def __init__(
        self,
        *,
        weights: str | None = None,
        allow_unverified: bool = False,
        splits: int = 10,
        seed: int = 2020,
    ) -> None:
        if splits < 1:
            raise ValueError(f"splits must be at least 1, got {splits}")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must be in [0, 2**32), got {seed}")
        self.splits, self.seed = splits, seed
        super().__init__(
            shared_extractor(
                "inception", weights=weights, allow_unverified=allow_unverified, layer="logits"
            )
        )

    def compute(self) -> list[Score]:
        """Compute the row `inception_score`.

        Raises:
            ValueError: there are fewer pictures than splits.
        """
        logits = self.features("generated")
        n = len(logits)
        if n < self.splits:
            raise ValueError(f"inception_score needs a picture per split, {self.splits}, got {n}")
        logits = logits[torch.from_numpy(np.random.RandomState(self.seed).permutation(n))]
        borders = [i * n // self.splits for i in range(self.splits + 1)]
        parts = pairwise(borders)
        scores = torch.tensor([_score(logits[a:b]) for a, b in parts], dtype=torch.float64)
        return [
            Score(
                "inception_score",
                scores.mean().item(),
                n,
                ci95=student_interval(scores),
                details={"splits": self.splits, "std": scores.std(correction=0).item()},
                warnings=unverified(self.extractor.spec()),
            )
        ]

    def provenance(self) -> dict[str, Any]:
        """Return what makes the number comparable."""
        return super().provenance() | {"splits": self.splits, "seed": self.seed}


def _score(logits: Float[Tensor, "N classes"]) -> float:
    """Compute exp(mean KL(p(y|x) || p(y))) of one split."""
    log_p = logits.log_softmax(dim=1)
    p = log_p.exp()
    divergence = (p * (log_p - p.mean(dim=0).log())).sum(dim=1)
    return divergence.mean().exp().item()


PLUGIN = InceptionScore
