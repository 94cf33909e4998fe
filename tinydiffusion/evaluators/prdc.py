"""Precision, recall, density and coverage: is it real, and is all of it there?"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tinydiffusion.metrics.features import FeatureRows, chosen_extractor, row_name
from tinydiffusion.metrics.provenance import unverified
from tinydiffusion.metrics.statistics import mean_interval, wilson_interval
from tinydiffusion.protocols import Score

CHUNK = 256
"""Rows whose distances to all others are in memory at once."""


class PRDC(FeatureRows):
    """Four shares of pictures that lie within the other set's neighbourhoods; higher is better.

    A picture's neighbourhood is the ball that reaches to its k-th nearest of its own set.
    Kynkäänniemi et al. (2019), https://arxiv.org/abs/1904.06991, and Naeem et al. (2020),
    https://arxiv.org/abs/2002.09797:

        precision  share of generated pictures in the ball of any reference picture
        recall     share of reference pictures in the ball of any generated picture
        density    mean number of reference balls around a generated picture, over k; may exceed 1
        coverage   share of reference pictures whose ball holds a generated picture

    The intervals of precision and density are over other generated pictures, the reference being
    fixed. Recall and coverage depend on the generated set as a whole: they have none, and they
    compare only at the same numbers of pictures.

    Args:
        extractor: Name of a feature extractor, or `{name: ..., options}`; rows of another one than
            the FID Inception carry its name.
        weights: Weights file of the extractor.
        allow_unverified: Accept another file than the genuine one, and flag the scores.
        nearest_k: Which neighbour the balls reach to, at least 1.

    Raises:
        ValueError: an option is out of range, or the weights are missing or not genuine.
    """

    needs = ("generated", "reference")

    def __init__(
        self,
        *,
        extractor: str | dict[str, Any] = "inception",
        weights: str | None = None,
        allow_unverified: bool = False,
        nearest_k: int = 3,
    ) -> None:
        if nearest_k < 1:
            raise ValueError(f"nearest_k must be at least 1, got {nearest_k}")
        self.nearest_k = nearest_k
        super().__init__(
            chosen_extractor(extractor, weights=weights, allow_unverified=allow_unverified)
        )

    def compute(self) -> list[Score]:
        """Compute the rows `precision`, `recall`, `density` and `coverage`.

        Raises:
            ValueError: a set has no more than nearest_k pictures.
        """
        generated, reference = self.features("generated"), self.features("reference")
        if min(len(generated), len(reference)) <= self.nearest_k:
            raise ValueError(
                f"prdc with nearest_k={self.nearest_k} needs at least {self.nearest_k + 1} "
                f"pictures per set, got {len(generated)} and {len(reference)}"
            )
        radius = _radii(reference, self.nearest_k)
        around = _balls_around(generated, reference, radius)  # number for each generated picture
        inside = around > 0
        recalled = _balls_around(reference, generated, _radii(generated, self.nearest_k)) > 0
        covered = _nearest(reference, generated) <= radius
        hits, n = int(inside.sum()), len(inside)
        return [
            self._row("precision", inside.double(), wilson_interval(hits, n), each=True),
            self._row("recall", recalled.double()),
            self._row(
                "density",
                around / self.nearest_k,
                mean_interval(around / self.nearest_k),
                each=True,
            ),
            self._row("coverage", covered.double()),
        ]

    def provenance(self) -> dict[str, Any]:
        """Return what makes the numbers comparable."""
        return super().provenance() | {"nearest_k": self.nearest_k}

    def _row(
        self,
        name: str,
        values: Float[Tensor, "N"],
        interval: tuple[float, float] | None = None,
        *,
        each: bool = False,
    ) -> Score:
        """Make the row of a mean; with `each`, the values are those of the generated pictures."""
        generated, reference = self.tables["generated"], self.tables["reference"]
        return Score(
            row_name(name, self.extractor),
            values.mean().item(),
            len(generated),
            ci95=interval,
            details={"nearest_k": self.nearest_k, "n_reference": len(reference)},
            warnings=unverified(self.extractor.spec()),
            per_picture=dict(zip(generated.ids(), values.tolist(), strict=True)) if each else {},
        )


def _radii(x: Float[Tensor, "N D"], k: int) -> Float[Tensor, "N"]:
    """Compute the distance of every row to its k-th nearest other row."""
    return torch.cat([torch.cdist(rows, x).kthvalue(k + 1).values for rows in x.split(CHUNK)])


def _balls_around(
    x: Float[Tensor, "N D"], centres: Float[Tensor, "M D"], radii: Float[Tensor, "M"]
) -> Float[Tensor, "N"]:
    """Count the balls that every row lies in; the border belongs to a ball."""
    counts = [(torch.cdist(rows, centres) <= radii).sum(dim=1) for rows in x.split(CHUNK)]
    return torch.cat(counts).double()


def _nearest(x: Float[Tensor, "N D"], y: Float[Tensor, "M D"]) -> Float[Tensor, "N"]:
    """Compute the distance of every row of x to the nearest row of y."""
    return torch.cat([torch.cdist(rows, y).amin(dim=1) for rows in x.split(CHUNK)])


PLUGIN = PRDC
