"""Which pictures of a prompt set belong together: repetitions, colour swaps, exchanged prompts."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import torch

from tinydiffusion.scenes.geneval import Prompt


def groups_of(k: int, keys: Sequence[str], values: Sequence[bool]) -> tuple[list[list[bool]], int]:
    """Group the values of equal keys, k at a time and in order; count those that are left over."""
    by_key = defaultdict(list)
    for key, value in zip(keys, values, strict=True):
        by_key[key].append(value)
    starts = [(own, i) for own in by_key.values() for i in range(0, len(own) - k + 1, k)]
    groups = [own[i : i + k] for own, i in starts]
    return groups, len(values) - k * len(groups)


def binding_pairs(asked: Sequence[Prompt]) -> list[tuple[int, int]]:
    """Find pairs of places whose prompts differ only in the exchanged colours of their two objects.

    Each place is in one pair at most: the first picture of a prompt goes with the first of the
    other prompt, the second with the second.
    """
    places = defaultdict(list)
    for place, prompt in enumerate(asked):
        places[prompt.meaning()].append(place)
    pairs = []
    for first, *_ in list(places.values()):
        swapped = asked[first].with_swapped_colours()
        others = [] if swapped is None else places.get(swapped.meaning(), [])
        if others and first < others[0]:  # seen from the one that comes first
            pairs += zip(places[asked[first].meaning()], others, strict=False)
    return pairs


def derangement(items: Sequence[Hashable], seed: int) -> list[int] | None:
    """Map each place to one with a different item, each used once; return None if impossible.

    Places are sorted by item, items in random order, and shifted by the length of the longest run
    of equal items, which moves every place out of its run.
    """
    counts = Counter(items)
    step = max(counts.values())
    if 2 * step > len(items):
        return None
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(items), generator=generator).tolist()
    run = {item: number for number, item in enumerate(dict.fromkeys(items[i] for i in order))}
    order.sort(key=lambda place: run[items[place]])
    source = dict(zip(order, order[step:] + order[:step], strict=True))
    return [source[place] for place in range(len(items))]
