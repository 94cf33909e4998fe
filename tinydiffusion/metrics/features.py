"""One extractor for all evaluators that need the same; it processes each picture once."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tinydiffusion import registry
from tinydiffusion.metrics.provenance import provenance
from tinydiffusion.metrics.table import Columns, RowsEvaluator
from tinydiffusion.protocols import EvalBatch, FeatureExtractor


class Shared:
    """An extractor that keeps the features of its last batch for the next evaluator."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        self.extractor = extractor
        self.dimensions = extractor.dimensions
        self._images: Tensor | None = None
        self._features: Tensor = torch.zeros(0)

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        """Extract features of shape (N, D), all of them finite.

        Raises:
            ValueError: a feature is NaN or infinite.
        """
        if images is not self._images:
            features = self.extractor(images)
            if broken := int((~features.isfinite()).any(dim=1).sum()):
                raise ValueError(
                    f"features of {broken} of {len(images)} pictures are NaN or infinite; "
                    f"the weights of {self.spec()['name']} are damaged or do not belong to it"
                )
            self._images, self._features = images, features
        return self._features

    def spec(self) -> dict[str, Any]:
        """Return what makes a number comparable."""
        return self.extractor.spec()


_loaded: dict[str, Shared] = {}


def shared_extractor(name: str, **options: Any) -> Shared:
    """Return the one extractor of this name and options in the process; make it if need be.

    Options that are left out have their defaults.

    Raises:
        PluginError: there is no such extractor, or it does not take the options.
    """
    declared = registry.options_of(registry.load("feature_extractor", name)) or {}
    defaults = {o: p.default for o, p in declared.items() if p.default is not p.empty}
    key = json.dumps([name, defaults | options], sort_keys=True)
    if key not in _loaded:
        _loaded[key] = Shared(registry.create("feature_extractor", name, **options))
    return _loaded[key]


def chosen_extractor(
    extractor: str | Mapping[str, Any],
    *,
    weights: str | None = None,
    allow_unverified: bool = False,
) -> Shared:
    """Return the extractor that a user names: `inception`, or `{name: pixels, size: 8}`.

    Args:
        extractor: A name, or a name and options.
        weights: Passed on as an option where it is not None.
        allow_unverified: Passed on as an option where it is True.

    Raises:
        PluginError: there is no such extractor, or it does not take the options.
    """
    section: dict[str, Any] = {"name": extractor} if isinstance(extractor, str) else dict(extractor)
    if not isinstance(section.get("name"), str):
        raise ValueError(f"an extractor is a name or {{name: ..., options}}, got {section}")
    if weights is not None:
        section["weights"] = weights
    if allow_unverified:
        section["allow_unverified"] = True
    return shared_extractor(**section)


def row_name(metric: str, extractor: Shared) -> str:
    """Return the name of a metric's row: the extractor's name is added unless it is FID's own."""
    spec = extractor.spec()
    usual = spec["name"] == "fid-inception-v3" and spec["layer"] == "2048"
    return metric if usual else f"{metric}[{spec['name']}]"


class FeatureRows(RowsEvaluator):
    """Base of evaluators that keep the features of every picture, in the column `features`."""

    def __init__(self, extractor: Shared) -> None:
        super().__init__(tensors=("features",))
        self.extractor = extractor

    def columns(self, batch: EvalBatch) -> Columns:
        """Extract the features of each picture."""
        return {"features": self.extractor(batch["image"])}

    def features(self, source: str) -> Float[Tensor, "N D"]:
        """Return the features of one source in id order, float64.

        Raises:
            ValueError: there is no picture of this source.
        """
        table = self.tables[source]
        if not len(table):
            raise ValueError(f"there is no {source} picture")
        return table.tensor("features").double()

    def provenance(self) -> dict[str, Any]:
        """Return what makes the numbers comparable."""
        return provenance(self.extractor.spec())
