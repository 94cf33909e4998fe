"""Copy rate: how many generated pictures are training pictures, mirrored or not."""

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import pad

from tinydiffusion.abilities import Illustrated
from tinydiffusion.metrics.copies import Nearest, nearest
from tinydiffusion.metrics.features import shared_extractor
from tinydiffusion.metrics.provenance import provenance
from tinydiffusion.metrics.statistics import wilson_interval
from tinydiffusion.metrics.table import Columns, RowsEvaluator
from tinydiffusion.protocols import EvalBatch, EvaluatorState, Score

QUANTILE = 0.01
IDENTICAL = 1e-6  # two distances that differ by less differ by rounding only
MAX_HELD_OUT = 2000  # enough for the quantile: every picture more costs a search
NUM_PAIRS = 16


class CopyRate(RowsEvaluator, Illustrated):
    """Share of generated pictures nearer to the training set than real ones ever are; 0 is best.

    Nearer means: at most as far from the nearest training picture as 1 % of held-out (reference)
    pictures are, of which 2,000 are taken, so that 0.01 is what a model without memory has.
    Pictures are averaged to size x size pixels, and a copy may be mirrored and moved by one of
    these pixels each way. They are compared at half that size by 1 - cosine after the mean training
    picture is taken off: by Euclidean distance every blurred or grey picture would be nearer than
    a real one.

    Args:
        size: Even side that pictures are averaged to, in [8, 128]; 3 size² bytes are kept of each.

    Raises:
        ValueError: size is out of range or odd.
    """

    needs = ("generated", "reference", "train")

    def __init__(self, *, size: int = 32) -> None:
        if size % 2 or not 8 <= size <= 128:
            raise ValueError(f"size must be even and in [8, 128], got {size}")
        super().__init__(tensors=("picture",))
        self.size = size
        self.extractor = shared_extractor("pixels", size=size)
        self._found: dict[str, Nearest] = {}

    def columns(self, batch: EvalBatch) -> Columns:
        """Average each picture to size x size pixels, as uint8."""
        self._found = {}
        small = (self.extractor(batch["image"]) * 255).round().byte()
        return {"picture": small.unflatten(1, (3, self.size, self.size))}

    def load_state(self, state: EvaluatorState) -> None:
        """Load a (merged) state in place of the present one."""
        self._found = {}
        super().load_state(state)

    def compute(self) -> list[Score]:
        """Compute the row `copy_rate`, with the closest pairs in its details.

        Raises:
            ValueError: a source has no picture, or the training pictures are all the same.
        """
        generated, reference = self._nearest("generated"), self._nearest("reference")
        # Where the held-out set shares pictures with the training set, the quantile may be 0.
        threshold = max(reference.distance.quantile(QUANTILE).item(), IDENTICAL)
        copied = generated.distance <= threshold
        hits, n = int(copied.sum()), len(copied)
        details = {
            "threshold": threshold,
            "n_mirrored": int((copied & generated.mirrored).sum()),
            "n_reference": len(reference.distance),
            "n_train": len(self.tables["train"]),
            "closest_pairs": [self._pair(i) for i in _closest(generated)],
        }
        ids = self.tables["generated"].ids()
        return [
            Score(
                "copy_rate",
                hits / n,
                n,
                ci95=wilson_interval(hits, n),
                higher_is_better=False,
                details=details,
                warnings=_warnings(reference.distance),
                per_picture=dict(zip(ids, copied.double().tolist(), strict=True)),
            )
        ]

    def figures(self) -> Mapping[str, UInt8[Tensor, "3 H W"]]:
        """Draw `copy_rate`: the closest pairs row by row, generated left, training picture right.

        The training picture is mirrored where the generated one is nearest to its mirror image.
        """
        found = self._nearest("generated")
        places = _closest(found)
        drawn, copied = self._pictures("generated")[places], self._pictures("train")
        copied = copied[found.place[places]]
        copied = torch.where(found.mirrored[places][:, None, None, None], copied.flip(-1), copied)
        pairs = torch.cat([pad(drawn, (0, 1), value=255), copied], dim=-1)
        pairs = pad(pairs, (3, 3, 3, 3), value=255)
        missing = -len(pairs) % 4
        pairs = torch.cat([pairs, torch.full_like(pairs[:1], 255).repeat(missing, 1, 1, 1)])
        return {"copy_rate": rearrange(pairs, "(r k) c h w -> c (r h) (k w)", k=4)}

    def provenance(self) -> dict[str, Any]:
        """Return what makes the number comparable."""
        return provenance(self.extractor.spec())

    def _nearest(self, source: str) -> Nearest:
        """Find the nearest training pictures of a source, once per state."""
        if source not in self._found:
            pictures = self._pictures(source)
            if source == "reference" and len(pictures) > MAX_HELD_OUT:
                places = torch.linspace(0, len(pictures) - 1, MAX_HELD_OUT, dtype=torch.float64)
                pictures = pictures[places.round().long()]
            self._found[source] = nearest(pictures, self._pictures("train"))
        return self._found[source]

    def _pictures(self, source: str) -> UInt8[Tensor, "N 3 S S"]:
        """Return the small pictures of a source in id order."""
        if not len(self.tables[source]):
            raise ValueError(f"copy_rate got no {source} picture; it needs {', '.join(self.needs)}")
        return self.tables[source].tensor("picture").byte()

    def _pair(self, place: int) -> dict[str, Any]:
        """Describe one of the closest pairs, JSON-able."""
        found = self._nearest("generated")
        return {
            "generated": self.tables["generated"].ids()[place],
            "train": self.tables["train"].ids()[int(found.place[place])],
            "distance": found.distance[place].item(),
            "mirrored": bool(found.mirrored[place]),
        }


def _closest(found: Nearest) -> list[int]:
    """Return the indices of the closest pairs, closest first."""
    return found.distance.argsort(stable=True)[:NUM_PAIRS].tolist()


def _warnings(distances: Float[Tensor, "N"]) -> list[str]:
    warnings = []
    if (n := len(distances)) < 1 / QUANTILE:
        warnings.append(
            f"copy_rate has {n} held-out pictures: the 1 % quantile of their distances to the "
            "training set is merely the smallest of them"
        )
    if (shared := (distances <= IDENTICAL).double().mean().item()) > QUANTILE:
        warnings.append(
            f"copy_rate: {shared:.0%} of the held-out pictures are training pictures themselves, "
            "so that only identical pictures count as copies"
        )
    return warnings


PLUGIN = CopyRate
