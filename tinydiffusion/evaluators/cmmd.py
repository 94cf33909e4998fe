"""CMMD: the distance of generated from reference pictures in the space of a CLIP."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from tinydiffusion.metrics.clip import image_tower
from tinydiffusion.metrics.features import FeatureRows
from tinydiffusion.metrics.mmd import unbiased_mmd
from tinydiffusion.metrics.provenance import provenance, unverified
from tinydiffusion.protocols import Score

SIGMA = 10
SCALE = 1000


class CMMD(FeatureRows):
    """1000 x the unbiased squared maximum mean discrepancy of unit CLIP embeddings; 0 is best.

    Jayasumana et al. (2024), section 4, https://arxiv.org/abs/2401.09603, with the Gaussian kernel
    of sigma 10, but without the bias of their estimator, which is of the size of the value at a
    thousand pictures: equal distributions give 0 on average, and often a negative number. The
    kernel is so wide that the value is nearly 10 x the squared distance of the mean embeddings.

    Args:
        model: As `clip_score` takes it.
        pretrained: As `clip_score` takes it.

    Raises:
        ValueError: the model does not exist, has no weights or does not fit them.
    """

    needs = ("generated", "reference")

    def __init__(
        self, *, model: str = "ViT-L-14-336-quickgelu", pretrained: str | None = None
    ) -> None:
        super().__init__(image_tower(model, pretrained))

    def compute(self) -> list[Score]:
        """Compute the row `cmmd[model]` with its jackknife interval.

        Raises:
            ValueError: there are fewer than two pictures of a source.
        """
        generated, reference = self.features("generated"), self.features("reference")
        value, interval = unbiased_mmd(
            normalize(generated, dim=1), normalize(reference, dim=1), gaussian
        )
        return [
            Score(
                f"cmmd[{self.extractor.spec()['name']}]",
                SCALE * value,
                len(generated),
                ci95=interval and (SCALE * interval[0], SCALE * interval[1]),
                higher_is_better=False,
                details={"n_reference": len(reference), "sigma": SIGMA},
                warnings=unverified(self.extractor.spec()),
            )
        ]

    def provenance(self) -> dict[str, Any]:
        """Return what makes the number comparable."""
        return provenance(self.extractor.spec(), "open_clip_torch", "pillow")


def gaussian(x: Float[Tensor, "N D"], y: Float[Tensor, "M D"]) -> Float[Tensor, "N M"]:
    """Compute exp(-|x - y|² / (2 sigma²)) for unit vectors, for which |x - y|² = 2 - 2 x·y."""
    return torch.exp((x @ y.T - 1) / SIGMA**2)


PLUGIN = CMMD
