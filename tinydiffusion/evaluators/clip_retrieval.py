"""CLIP retrieval: does a picture find its own prompt among all the prompts?"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tinydiffusion.metrics.clip import shared_clip
from tinydiffusion.metrics.jackknife import jackknife_interval
from tinydiffusion.metrics.provenance import unverified
from tinydiffusion.metrics.recall import MAX_RANK, Candidates, Found, recall_rows
from tinydiffusion.metrics.table import Columns, RowsEvaluator
from tinydiffusion.protocols import EvalBatch, Score

CHUNK = 512


class Similarities(NamedTuple):
    """The kept part of the cosines of N pictures with M different prompts."""

    found: Found  # the prompts that are among the nearest of a picture
    own: Float[Tensor, "N"]  # cosine of picture and own prompt
    row: Float[Tensor, "N"]  # sum of a picture's cosines with the other pictures' foreign prompts
    column: Float[Tensor, "N"]  # sum of a prompt's cosines with the pictures that it is foreign to
    pairs: Float[Tensor, "N"]  # the number of terms in either sum


class CLIPRetrieval(RowsEvaluator):
    """Share of pictures whose own prompt is among the k nearest of all different prompts.

    Radford et al. (2021), section 3.1.4, https://arxiv.org/abs/2103.00020, for retrieval by cosine.
    Prompts that CLIP reads alike are one prompt; a foreign prompt at the same cosine counts as
    nearer. `shuffle_gap` says by how much `clip_score` falls when pictures get foreign prompts,
    over all such pairs: 0 is a model that ignores its prompts, whatever its CLIP score.

    Args:
        model: As `clip_score` takes it.
        pretrained: As `clip_score` takes it.

    Raises:
        ValueError: the model does not exist, has no weights or does not fit them.
    """

    needs = ("generated", "prompts")

    def __init__(self, *, model: str = "ViT-B-32-quickgelu", pretrained: str | None = None) -> None:
        super().__init__(tensors=("picture", "text", "tokens"))
        self.clip = shared_clip(model, pretrained)

    def columns(self, batch: EvalBatch) -> Columns:
        """Embed picture and prompt, and keep the prompt's tokens."""
        texts = self.clip.encode_texts(batch["prompt"])
        pictures = self.clip.encode_images(batch["image"])
        return {"picture": pictures, "text": texts.features, "tokens": texts.tokens}

    def compute(self) -> list[Score]:
        """Compute the rows `clip_retrieval[model]@1`, `@5` and `/shuffle_gap`, the last times 100.

        Raises:
            ValueError: there are fewer than two different prompts.
        """
        table = self.tables["generated"]
        prompts, similarities = self._similarities()
        name = f"clip_retrieval[{self.clip.name}]"
        candidates = Candidates(int(prompts.max()) + 1, torch.ones_like(prompts))
        recalls = recall_rows(name, table.ids(), prompts, similarities.found, candidates)
        gap = _shuffle_gap(f"{name}/shuffle_gap", table.ids(), similarities)
        warnings = unverified(self.clip.images.spec())
        return [row._replace(warnings=[*warnings, *row.warnings]) for row in (*recalls, gap)]

    def provenance(self) -> dict[str, Any]:
        """Return what makes the numbers comparable."""
        return self.clip.provenance()

    def _similarities(self) -> tuple[Int[Tensor, "N"], Similarities]:
        """Number the different prompts, one number per picture, and compute the cosines."""
        table = self.tables["generated"]
        if not len(table):
            raise ValueError("clip_retrieval got no generated picture")
        tokens = table.tensor("tokens")
        _, own, counts = tokens.unique(dim=0, return_inverse=True, return_counts=True)
        if len(counts) < 2:
            raise ValueError(
                f"clip_retrieval needs at least 2 different prompts, got {len(counts)} of "
                f"{len(table)} pictures"
            )
        places = torch.arange(len(own))
        first = places.new_full((len(counts),), len(own)).scatter_reduce(0, own, places, "amin")
        texts = table.tensor("text")[first].double()
        return own, compare(table.tensor("picture").double(), texts, own, counts)


def compare(
    pictures: Float[Tensor, "N D"],
    texts: Float[Tensor, "M D"],
    own: Int[Tensor, "N"],
    counts: Int[Tensor, "M"],
) -> Similarities:
    """Compute the cosines of unit vectors, in pieces that fit into memory.

    Args:
        pictures: Embedding of each picture.
        texts: Embedding of each different prompt.
        own: Index of each picture's prompt.
        counts: Number of pictures of each prompt.
    """
    found, own_cosine, row = [], [], []
    column = torch.zeros(len(texts), dtype=texts.dtype)
    for first in range(0, len(own), CHUNK):
        part, place = pictures[first : first + CHUNK], own[first : first + CHUNK]
        cosine = part @ texts.T
        mine = cosine.gather(1, place[:, None])
        foreign = torch.arange(len(texts)) != place[:, None]
        found.append(_found(cosine, first))
        own_cosine.append(mine[:, 0])
        row.append((cosine * foreign) @ counts.to(cosine.dtype))
        column += (cosine * foreign).sum(dim=0)
    pairs = (len(own) - counts[own]).to(texts.dtype)
    nearest = Found(*torch.cat(found, dim=1))
    return Similarities(nearest, torch.cat(own_cosine), torch.cat(row), column[own], pairs)


def _found(cosine: Float[Tensor, "B M"], first: int) -> Int[Tensor, "3 R"]:
    """Find the nearest prompts of pictures, as the rows of `Found`; a tie is no hit for either.

    Args:
        cosine: Cosines of B pictures with the M different prompts.
        first: Index of the first of the pictures.
    """
    top = cosine.topk(min(MAX_RANK, cosine.shape[1]))
    ahead = torch.stack([(cosine >= t[:, None]).sum(dim=1) - 1 for t in top.values.T], dim=1)
    picture, rank = (ahead < MAX_RANK).nonzero().T
    return torch.stack([first + picture, top.indices[picture, rank], ahead[picture, rank]])


def _shuffle_gap(name: str, ids: Sequence[int], found: Similarities) -> Score:
    """Compute the mean own cosine minus that of all foreign pairs, and its jackknife interval."""
    n, num_pairs = len(ids), found.pairs.sum()
    per_picture = 100 * (found.own - found.row * n / num_pairs)
    value = per_picture.mean().item()
    rest = num_pairs - 2 * found.pairs  # foreign pairs without one picture and its prompt
    interval = None
    if n > 2 and rest.min() > 0:
        own = (found.own.sum() - found.own) / (n - 1)
        shuffled = (found.row.sum() - found.row - found.column) / rest
        interval = jackknife_interval(value, 100 * (own - shuffled))
    details = {
        "own": 100 * found.own.mean().item(),
        "shuffled": 100 * (found.row.sum() / num_pairs).item(),
    }
    by_id = dict(zip(ids, per_picture.tolist(), strict=True))
    return Score(name, value, n, ci95=interval, details=details, per_picture=by_id)


PLUGIN = CLIPRetrieval
