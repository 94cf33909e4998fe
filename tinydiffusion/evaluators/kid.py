"""Kernel inception distance: unbiased, so that few pictures give no better or worse a value."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tinydiffusion.metrics.features import FeatureRows, chosen_extractor, row_name
from tinydiffusion.metrics.mmd import unbiased_mmd
from tinydiffusion.metrics.provenance import unverified
from tinydiffusion.protocols import Score

NUM_SUBSETS, SEED = 100, 2020  # torch-fidelity's


class KID(FeatureRows):
    """Unbiased squared MMD between generated and reference features; 0 is best, chance goes below.

    Binkowski et al. (2018), section 4, https://arxiv.org/abs/1801.01401, with the kernel
    (x·y / D + 1)³. All pictures make one estimate, and its 95 % interval is that of the jackknife
    over them. With `subset_size`, the mean over random subsets in its place, which equals
    torch-fidelity's with the same sizes and seed; those subsets overlap, so that their standard
    deviation is no interval.

    Args:
        extractor: Name of a feature extractor, or `{name: ..., options}`; the row of another one
            than the FID Inception carries its name.
        weights: Weights file of the extractor.
        allow_unverified: Accept another file than the genuine one, and flag the score.
        subset_size: Pictures of each source in a subset; None makes no subsets.
        num_subsets: How many, at least 1.
        seed: Of the subsets.

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
        subset_size: int | None = None,
        num_subsets: int = NUM_SUBSETS,
        seed: int = SEED,
    ) -> None:
        if subset_size is not None and subset_size < 2:
            raise ValueError(f"subset_size must be at least 2, got {subset_size}")
        if num_subsets < 1:
            raise ValueError(f"num_subsets must be at least 1, got {num_subsets}")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must be in [0, 2**32), got {seed}")
        if subset_size is None and (num_subsets, seed) != (NUM_SUBSETS, SEED):
            raise ValueError(
                f"num_subsets {num_subsets} and seed {seed} have no effect without subset_size: "
                "set it, or leave them out"
            )
        self.subset_size, self.num_subsets, self.seed = subset_size, num_subsets, seed
        super().__init__(
            chosen_extractor(extractor, weights=weights, allow_unverified=allow_unverified)
        )

    def compute(self) -> list[Score]:
        """Compute the row `kid`.

        Raises:
            ValueError: there are too few pictures.
        """
        x, y = self.features("generated"), self.features("reference")
        details: dict[str, Any] = {"n_reference": len(y)}
        if self.subset_size is None:
            value, interval = unbiased_mmd(x, y, polynomial_kernel)
        else:
            values, interval = self._of_subsets(x, y, self.subset_size), None
            value = values.mean().item()
            details |= {
                "subset_size": self.subset_size,
                "num_subsets": self.num_subsets,
                "std_of_subsets": values.std(correction=0).item(),
            }
        warnings = unverified(self.extractor.spec())
        name = row_name("kid", self.extractor)
        return [Score(name, value, len(x), interval, False, details, warnings)]

    def provenance(self) -> dict[str, Any]:
        """Return what makes the number comparable."""
        subsets = {"size": self.subset_size, "number": self.num_subsets, "seed": self.seed}
        return super().provenance() | {"subsets": subsets if self.subset_size else None}

    def _of_subsets(
        self, x: Float[Tensor, "N D"], y: Float[Tensor, "M D"], size: int
    ) -> Float[Tensor, "subsets"]:
        """Compute the estimate on each subset, drawn in torch-fidelity's order."""
        if min(len(x), len(y)) < size:
            raise ValueError(
                f"kid needs at least subset_size={size} pictures per set, got {len(x)} and {len(y)}"
            )
        draw = np.random.RandomState(self.seed)
        values = []
        for _ in range(self.num_subsets):
            some_x = x[torch.from_numpy(draw.choice(len(x), size, replace=False))]
            some_y = y[torch.from_numpy(draw.choice(len(y), size, replace=False))]
            values.append(unbiased_mmd(some_x, some_y, polynomial_kernel)[0])
        return torch.tensor(values, dtype=torch.float64)


def polynomial_kernel(x: Float[Tensor, "N D"], y: Float[Tensor, "M D"]) -> Float[Tensor, "N M"]:
    """Compute (x·y / D + 1)³ for every pair."""
    return (x @ y.T / x.shape[1] + 1) ** 3


PLUGIN = KID
