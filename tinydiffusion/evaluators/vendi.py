"""Vendi score: how many different pictures there are, in effect."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tinydiffusion.metrics.features import FeatureRows, chosen_extractor, row_name
from tinydiffusion.metrics.provenance import unverified
from tinydiffusion.protocols import Score

PIXELS = {"name": "pixels", "size": 16}


class Vendi(FeatureRows):
    """Effective number of different pictures, between 1 and n.

    Friedman and Dieng (2023), eq. 2, https://arxiv.org/abs/2210.02410: the exponential of the
    entropy of the eigenvalues of K/n, K being the cosines of the features. It grows with n, so the
    row beside it has the score of as many reference pictures, spread over the reference.

    Args:
        extractor: Name of a feature extractor, or `{name: ..., options}`; the rows carry its name.

    Raises:
        ValueError: the extractor does not exist, or does not take the options.
    """

    needs = ("generated", "reference")

    def __init__(self, *, extractor: str | dict[str, Any] = PIXELS) -> None:
        super().__init__(chosen_extractor(extractor))

    def compute(self) -> list[Score]:
        """Compute the rows `vendi[extractor]` and `vendi[extractor]/reference`.

        Raises:
            ValueError: one of the sources has no picture.
        """
        generated, reference = self.features("generated"), self.features("reference")
        places = torch.linspace(0, len(reference) - 1, min(len(reference), len(generated)))
        alike = reference[places.round().long()]
        warnings = unverified(self.extractor.spec())
        if len(alike) < len(generated):
            warnings.append(
                f"vendi of {len(generated)} generated but {len(alike)} reference pictures: it "
                "grows with their number, so the two do not compare"
            )
        name = row_name("vendi", self.extractor)
        return [
            Score(name, vendi_score(generated), len(generated), warnings=warnings),
            Score(f"{name}/reference", vendi_score(alike), len(alike), warnings=warnings),
        ]


def vendi_score(features: Float[Tensor, "N D"]) -> float:
    """Compute exp(-sum of p log p), p being the eigenvalues of the cosine matrix over N (eq. 2)."""
    # Pictures whose features are all zero, such as black ones, equal each other and no others: they
    # get one more dimension that only they have.
    empty = (features == 0).all(dim=1, keepdim=True).to(features.dtype)
    unit = torch.nn.functional.normalize(torch.cat([features, empty], dim=1), dim=1)
    # X Xᵀ and Xᵀ X have the same eigenvalues but for zeros: the smaller one is taken.
    matrix = unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit
    p = torch.linalg.eigvalsh(matrix / len(unit)).clamp(min=0)
    return torch.special.entr(p / p.sum()).sum().exp().item()  # eq. 2


PLUGIN = Vendi
