"""Retrieval: is the nearest real picture the one that the prompt describes?"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tinydiffusion.evaluators._features import shared_extractor
from tinydiffusion.evaluators._provenance import provenance
from tinydiffusion.evaluators._recall import recall_rows
from tinydiffusion.evaluators._table import Columns, RowsEvaluator
from tinydiffusion.protocols import EvalBatch, Score


class Retrieval(RowsEvaluator):
    """Share of generated pictures whose prompt's own picture is among the k nearest references.

    Pictures are averaged to size x size pixels and compared by Euclidean distance. A prompt's own
    pictures are the reference pictures with exactly that caption, and those that cannot be told
    from them because they are the same small picture (duplicates in the set). Another picture at
    the same distance counts as nearer: a model that draws one grey picture gains nothing by ties.

    Args:
        size: Side of the grid that pictures are averaged to, in [1, 256].
    """

    needs = ("generated", "reference", "prompts")

    def __init__(self, *, size: int = 16) -> None:
        if not 1 <= size <= 256:
            raise ValueError(f"size must be in [1, 256], got {size}")
        self.extractor = shared_extractor("pixels", size=size)
        super().__init__(tensors=("features",), texts=("prompt",))

    def columns(self, batch: EvalBatch) -> Columns:
        """Features and text of each picture; a reference picture's prompt is its caption."""
        return {"features": self.extractor(batch["image"]), "prompt": batch["prompt"]}

    def compute(self) -> list[Score]:
        """Rows `retrieval@1` and `retrieval@5`; `details["chance"]` is what guessing reaches.

        Raises:
            ValueError: there are no pictures, or a prompt has no reference picture of its own.
        """
        generated, reference = self.tables["generated"], self.tables["reference"]
        if not len(generated) or not len(reference):
            raise ValueError(
                f"retrieval needs generated and reference pictures, got {len(generated)} and "
                f"{len(reference)}"
            )
        pictures = generated.tensor("features").double()
        references = reference.tensor("features").double()
        pairs = zip(pictures, self._own(), strict=True)
        ahead = torch.tensor([_num_ahead(picture, references, own) for picture, own in pairs])
        return recall_rows("retrieval", generated.ids(), ahead, len(reference))

    def provenance(self) -> dict[str, Any]:
        """What makes the number comparable."""
        return provenance(self.extractor.spec())

    def _own(self) -> Iterator[Bool[Tensor, "M"]]:
        """For each prompt in id order, which reference pictures are its own."""
        reference = self.tables["reference"]
        _, picture = reference.tensor("features").unique(dim=0, return_inverse=True)
        places: dict[str, list[int]] = {}
        for place, caption in enumerate(reference.text("prompt")):
            places.setdefault(caption, []).append(place)
        for prompt in self.tables["generated"].text("prompt"):
            if prompt not in places:
                raise ValueError(
                    f"no reference picture has the caption {prompt!r}; retrieval needs prompts "
                    "that are captions of the reference set"
                )
            yield torch.isin(picture, picture[places[prompt]])


def _num_ahead(
    picture: Float[Tensor, "D"], references: Float[Tensor, "M D"], own: Bool[Tensor, "M"]
) -> int:
    """How many foreign reference pictures are at least as near as the nearest own one."""
    distances = (references - picture).square().sum(dim=1)
    return int((distances[~own] <= distances[own].min()).sum())


PLUGIN = Retrieval
