"""One feature extractor for all evaluators that ask for the same one; each picture goes through once."""

import json
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tinydiffusion import registry
from tinydiffusion.protocols import FeatureExtractor


class Shared:
    """An extractor that remembers the features of the last batch, which the next evaluator wants."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        self.extractor = extractor
        self.dimensions = extractor.dimensions
        self._images: Tensor | None = None
        self._features: Tensor = torch.zeros(0)

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        if images is not self._images:
            self._images, self._features = images, self.extractor(images)
        return self._features

    def spec(self) -> dict[str, Any]:
        """What makes a number comparable."""
        return self.extractor.spec()


_loaded: dict[str, Shared] = {}


def shared_extractor(name: str, **options: Any) -> Shared:
    """The process's one extractor of this name and these options.

    Raises:
        PluginError: there is no such extractor, or it does not take the options.
    """
    key = json.dumps([name, options], sort_keys=True)
    if key not in _loaded:
        _loaded[key] = Shared(registry.create("feature_extractor", name, **options))
    return _loaded[key]
