"""Prompts of combinations that training never shows."""

from collections.abc import Iterator, Sequence
from itertools import cycle, islice

import numpy as np

from tinydiffusion.scenes.captions import caption
from tinydiffusion.scenes.sampling import combinations
from tinydiffusion.scenes.vocabulary import CATEGORIES, Category


def held_out_prompts(
    n: int, seed: int = 0, categories: Sequence[Category] = ("one_object", "two_objects")
) -> list[str]:
    """`n` canonical captions of held-out combinations, the categories taking turns.

    A category repeats itself only after all its combinations, pairs told from both objects; the
    first n of more prompts are the same as n prompts.

    Raises:
        ValueError: `n` is negative, or there is no category or an unknown one.
    """
    if n < 0 or not categories or not set(categories) <= set(CATEGORIES):
        raise ValueError(
            f"n={n!r}, categories={categories!r}: n must be 0 or more and the categories some of "
            f"{', '.join(CATEGORIES)}"
        )
    streams = [_shuffled_prompts(category, seed) for category in categories]
    return [next(stream) for stream in islice(cycle(streams), n)]


def _shuffled_prompts(category: Category, seed: int) -> Iterator[str]:
    """Endless: every held-out combination once, then (pairs) once more told the other way."""
    rng = np.random.default_rng((seed, CATEGORIES.index(category)))
    every = combinations(category, "held_out")
    order, flips = rng.permutation(len(every)), rng.random(len(every)) < 0.5
    for turn in cycle((False, True)):
        for i in order:
            description = every[i]
            if description.relation is not None and flips[i] != turn:
                description = description.exchanged()
            yield caption(description)
