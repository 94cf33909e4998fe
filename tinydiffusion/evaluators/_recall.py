"""Recall at k: how often what belongs to a picture is among the k nearest."""

from collections.abc import Sequence

from jaxtyping import Bool, Int
from torch import Tensor

from tinydiffusion.evaluators._statistics import wilson_interval
from tinydiffusion.protocols import Score

RANKS = (1, 5)


def recall_rows(
    name: str, ids: Sequence[int], ahead: Int[Tensor, "N"], num_candidates: int
) -> list[Score]:
    """Rows `name@1` and `name@5` with Wilson intervals; `details["chance"]` is guessing's share.

    Args:
        name: Of the metric.
        ids: Picture numbers.
        ahead: For each picture, how many wrong candidates are at least as near as the right one.
        num_candidates: Among how many candidates the right one is searched.
    """
    return [_recall(f"{name}@{k}", ids, ahead < k, k, num_candidates) for k in RANKS]


def _recall(
    name: str, ids: Sequence[int], found: Bool[Tensor, "N"], k: int, num_candidates: int
) -> Score:
    hits, n = int(found.sum()), len(found)
    return Score(
        name,
        hits / n,
        n,
        ci95=wilson_interval(hits, n),
        details={"chance": min(1.0, k / num_candidates), "n_candidates": num_candidates},
        per_picture=dict(zip(ids, found.double().tolist(), strict=True)),
    )
