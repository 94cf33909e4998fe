"""Retrieval: is the nearest real picture the one that the prompt describes?"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tinydiffusion.metrics.features import shared_extractor
from tinydiffusion.metrics.provenance import provenance
from tinydiffusion.metrics.recall import MAX_RANK, Candidates, Found, recall_rows
from tinydiffusion.metrics.table import Columns, RowsEvaluator
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
        """Extract features and prompt of each picture; a reference's prompt is its caption."""
        return {"features": self.extractor(batch["image"]), "prompt": batch["prompt"]}

    def compute(self) -> list[Score]:
        """Compute the rows `retrieval@1` and `retrieval@5`, as `recall_rows` describes them.

        Raises:
            ValueError: there are no pictures, or a prompt has no reference picture of its own.
        """
        generated, reference = self.tables["generated"], self.tables["reference"]
        if not len(generated) or not len(reference):
            raise ValueError(
                f"retrieval needs generated and reference pictures, got {len(generated)} and "
                f"{len(reference)}"
            )
        number = {text: i for i, text in enumerate(dict.fromkeys(generated.text("prompt")))}
        prompts = torch.tensor([number[text] for text in generated.text("prompt")])
        gallery = make_gallery(reference.tensor("features"), reference.text("prompt"), number)
        found = find(generated.tensor("features").double(), gallery)
        single = gallery._replace(copies=torch.ones_like(gallery.copies))
        different = Candidates(len(gallery.features), single.num_own()[prompts])
        candidates = Candidates(len(reference), gallery.num_own()[prompts], different)
        return recall_rows("retrieval", generated.ids(), prompts, found, candidates)

    def provenance(self) -> dict[str, Any]:
        """Return what makes the number comparable."""
        return provenance(self.extractor.spec())


class Gallery(NamedTuple):
    """The U different reference pictures, and the own ones of each of the C prompts."""

    features: Float[Tensor, "U D"]
    copies: Int[Tensor, "U"]  # number of reference pictures that are the same
    prompt: Int[Tensor, "P"]  # number of a prompt, in [0, C), rising ...
    picture: Int[Tensor, "P"]  # ... and index of a picture of its own

    @property
    def num_prompts(self) -> int:
        """The number C of prompts; every prompt has a picture."""
        return int(self.prompt[-1]) + 1

    def num_own(self, counted: Bool[Tensor, "P"] | None = None) -> Int[Tensor, "C"]:
        """Count the reference pictures that are each prompt's own, of all pairs or of some."""
        copies = self.copies[self.picture]
        weights = copies if counted is None else copies * counted
        return weights.new_zeros(self.num_prompts).index_add(0, self.prompt, weights)


def make_gallery(
    features: Float[Tensor, "M D"], captions: Sequence[str], number: dict[str, int]
) -> Gallery:
    """Group the reference pictures by their features and by the prompts to which they belong.

    Args:
        features: Features of each reference picture.
        captions: Caption of each reference picture.
        number: Different prompt -> its number.

    Raises:
        ValueError: a prompt has no reference picture of its own.
    """
    known = set(captions)
    if missing := [prompt for prompt in number if prompt not in known]:
        raise ValueError(
            f"no reference picture has the caption {missing[0]!r}; retrieval needs prompts "
            "that are captions of the reference set"
        )
    pictures, places, copies = features.unique(dim=0, return_inverse=True, return_counts=True)
    pairs = zip(captions, places.tolist(), strict=True)
    own = sorted({(number[caption], place) for caption, place in pairs if caption in number})
    return Gallery(pictures.double(), copies, *torch.tensor(own).T)


def find(pictures: Float[Tensor, "N D"], gallery: Gallery) -> Found:
    """Find the prompts that have an own reference picture among the nearest of each picture."""
    rows = []
    for place, picture in enumerate(pictures):
        ahead = _num_ahead(picture, gallery)
        prompt = (ahead < MAX_RANK).nonzero()[:, 0]
        rows.append(torch.stack([torch.full_like(prompt, place), prompt, ahead[prompt]]))
    return Found(*torch.cat(rows, dim=1))


def _num_ahead(picture: Float[Tensor, "D"], gallery: Gallery) -> Int[Tensor, "C"]:
    """Count for each prompt the foreign references at least as near as the nearest own one."""
    distances = (gallery.features - picture).square().sum(dim=1)
    own = distances[gallery.picture]
    nearest = own.new_full((gallery.num_prompts,), torch.inf)
    nearest = nearest.scatter_reduce(0, gallery.prompt, own, "amin")
    ordered, order = distances.sort()
    within = gallery.copies[order].cumsum(0)[torch.searchsorted(ordered, nearest, right=True) - 1]
    return within - gallery.num_own(own == nearest[gallery.prompt])


PLUGIN = Retrieval
