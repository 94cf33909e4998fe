"""The Fréchet inception distance, for each of the resizes that have a name of their own."""

from typing import Literal

from tinydiffusion.metrics.features import shared_extractor
from tinydiffusion.metrics.frechet import FrechetEvaluator

Layer = Literal[64, 192, 768, 2048]


class InceptionDistance(FrechetEvaluator):
    """Base of `fid`, `fid_clean` and `fid_pt`: Heusel et al. (2017), eq. 6.

    https://arxiv.org/abs/1706.08500. The row of a layer other than 2048 contains the layer's name.
    """

    def __init__(
        self, name: str, resize: str, weights: str | None, allow_unverified: bool, layer: Layer
    ) -> None:
        extractor = shared_extractor(
            "inception",
            weights=weights,
            allow_unverified=allow_unverified,
            layer=layer,
            resize=resize,
        )
        super().__init__(name if layer == 2048 else f"{name}[{layer}]", extractor)
