"""Recall at k: is what belongs to a picture among the k nearest, and more often than by chance?"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tinydiffusion.metrics.statistics import wilson_interval
from tinydiffusion.protocols import Score

RANKS = (1, 5)
MAX_RANK = max(RANKS)

NUM_SHUFFLES, TAIL = 999, 25
"""Of 999 shuffled orders and the true one, 25 are the 2.5 % at either end."""


class Found(NamedTuple):
    """All pairs of a picture and a prompt with which it would be a hit at `MAX_RANK`.

    There are few of them for each picture, however many prompts there are.
    """

    picture: Int[Tensor, "R"]  # place of the picture, in [0, N)
    prompt: Int[Tensor, "R"]  # number of the prompt among the different prompts
    ahead: Int[Tensor, "R"]  # wrong candidates at least as near as the nearest right one

    def within(self, k: int) -> "Found":
        """Keep the pairs that are hits at k."""
        kept = self.ahead < k
        return Found(*(column[kept] for column in self))

    def hits(self, prompts: Int[Tensor, "N"]) -> Bool[Tensor, "N"]:
        """Return which pictures find their prompt, if these are their prompts."""
        hits = torch.zeros(len(prompts), dtype=torch.bool)
        hits[self.picture[prompts[self.picture] == self.prompt]] = True
        return hits


class Candidates(NamedTuple):
    """The candidates among which a picture and its prompt are looked up."""

    number: int
    right: Int[Tensor, "N"]  # how many of them belong to the picture's prompt
    different: "Candidates | None" = None  # the candidates without copies


def recall_rows(
    name: str,
    ids: Sequence[int],
    prompts: Int[Tensor, "N"],
    found: Found,
    candidates: Candidates,
) -> list[Score]:
    """Make the rows `name@1` and `name@5`, each with whether it is above chance.

    The interval is Wilson's, for these prompts and candidates. Where the pictures reach the value
    with shuffled prompts too, it is widened to hold `details["chance"]`: an interval holds what the
    data do not exclude, and the exact test does not exclude chance.

    Args:
        name: Name of the metric.
        ids: Picture numbers.
        prompts: For each picture, the number of its prompt among the different prompts.
        found: Which prompts the pictures find.
        candidates: Number of candidates, and how many of them are right.
    """
    return [_recall(f"{name}@{k}", ids, prompts, found.within(k), candidates, k) for k in RANKS]


def _recall(
    name: str,
    ids: Sequence[int],
    prompts: Int[Tensor, "N"],
    found: Found,
    candidates: Candidates,
    k: int,
) -> Score:
    hits = found.hits(prompts)
    num_hits, n = int(hits.sum()), len(hits)
    value, interval = num_hits / n, wilson_interval(num_hits, n)
    assert interval is not None
    chance = chance_of(candidates, k)
    low, high = shuffled_range(found, prompts)
    if low <= value <= high:
        interval = min(interval[0], chance), max(interval[1], chance)
    details = {
        "chance": chance,
        "chance_interval": (low, high),
        "above_chance": value > max(high, chance),
        "n_candidates": candidates.number,
    }
    return Score(
        name,
        value,
        n,
        ci95=interval,
        details=details,
        warnings=_warnings(name, candidates, details, k),
        per_picture=dict(zip(ids, hits.double().tolist(), strict=True)),
    )


def chance_of(candidates: Candidates, k: int) -> float:
    """Compute the recall at k of candidates in random order, averaged over the pictures.

    If m of n candidates are right, the first k hold none of them with the probability of the
    hypergeometric distribution, C(n - m, k) / C(n, k) (Feller 1968, volume 1, section II.6).
    """
    if k > 1 and candidates.different is not None:  # k places hold this many different candidates
        k = max(1, round(k * candidates.different.number / candidates.number))
        candidates = candidates.different
    n, wrong = candidates.number, (candidates.number - candidates.right).double()
    missed = torch.ones_like(wrong)
    for drawn in range(min(k, n)):
        missed *= (wrong - drawn).clamp(min=0) / (n - drawn)
    return 1 - missed.mean().item()


def shuffled_range(found: Found, prompts: Int[Tensor, "N"]) -> tuple[float, float]:
    """Compute the range of the recall in 95 % of the random orders of the prompts.

    Only the prompts are shuffled: a reference that is the nearest of many, captions that repeat
    and uneven numbers of pictures per prompt count as they do in the recall itself. A value above
    the range has p <= 0.025 in the permutation test, p = (b + 1) / (m + 1) with b of m orders
    reaching it (Phipson and Smyth 2010, https://doi.org/10.2202/1544-6115.1585).
    """
    generator = torch.Generator().manual_seed(0)
    counts = []
    for _ in range(NUM_SHUFFLES):
        shuffled = prompts[torch.randperm(len(prompts), generator=generator)]
        counts.append(int((shuffled[found.picture] == found.prompt).sum()))
    counts.sort()
    return counts[TAIL - 1] / len(prompts), counts[-TAIL] / len(prompts)


def _warnings(name: str, candidates: Candidates, details: Mapping[str, Any], k: int) -> list[str]:
    """Return a warning where the recall does not differ from chance."""
    n, wrong = candidates.number, candidates.number - int(candidates.right.min())
    if wrong == 0:
        return [f"{name} says nothing: all {n} candidates have the picture's own prompt"]
    if details["chance"] == 1:
        return [
            f"{name} says nothing: at most {wrong} of {n} candidates are wrong, so that any {k} of "
            "them hold a right one"
        ]
    if details["above_chance"]:
        return []
    low, high = details["chance_interval"]
    return [
        f"{name} is not above chance, {details['chance']:.3g}: with shuffled prompts the same "
        f"pictures reach {low:.3g} to {high:.3g}"
    ]
