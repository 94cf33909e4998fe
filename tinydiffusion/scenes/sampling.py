"""Random scenes, and the split of the combinations of attributes into training and held-out."""

import hashlib
from functools import cache
from itertools import product

import numpy as np

from tinydiffusion.scenes.font import WORD_ASPECT, WORDS
from tinydiffusion.scenes.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    COUNT_WORDS,
    SHAPES,
    WORD,
    Category,
    Object,
    ObjectDescription,
    Scene,
    SceneDescription,
    Split,
)

MARGIN = 0.03  # between an object and the picture's edge, in units of the side
GAP = 0.09  # between two objects, about 3 pixels of 32
MAX_SLOPE = 0.35  # offset across a relation's axis / distance along it; 1 on the diagonal
RADIUS = {1: (0.14, 0.19), 2: (0.13, 0.17), 3: (0.12, 0.15), 4: (0.11, 0.14), 5: (0.10, 0.12)}
PAIR_RADIUS = (0.14, 0.19)
WORD_RADIUS = (0.40, 0.46)  # half the width of a word

Position = tuple[float, float]


def sample_scene(rng: np.random.Generator, category: Category, split: Split) -> Scene:
    """Draw a scene: a uniformly drawn combination of the split, placed at random."""
    choices = combinations(category, split)
    description = choices[rng.integers(len(choices))]
    if description.relation is not None and rng.random() < 0.5:
        description = description.exchanged()
    return place(description, rng)


@cache
def combinations(category: Category, split: Split) -> tuple[SceneDescription, ...]:
    """Return the canonical descriptions of one split of a category.

    A fifth of each category's combinations is held out: the first by SHA-256, so that membership
    depends on the words only. For spelling it is a fifth of the words, in every colour.
    """
    every = sorted(_every_description(category), key=_digest)
    num_held_out = len(every) // 5
    return tuple(every[:num_held_out] if split == "held_out" else every[num_held_out:])


def place(description: SceneDescription, rng: np.random.Generator) -> Scene:
    """Draw a scene of a description: objects keep a gap, pairs keep away from the diagonal.

    The description must have a background, and a colour for each object.
    """
    if description.objects[0].shape == WORD:
        radii, positions = _place_word(rng)
    elif description.relation is not None:
        radii, positions = _place_pair(description.relation, rng)
    else:
        radii, positions = _scatter(len(description.objects), rng)
    assert description.background is not None
    objects = []
    for o, radius, (x, y) in zip(description.objects, radii, positions, strict=True):
        assert o.colour is not None
        objects.append(Object(o.shape, o.colour, x, y, radius, o.text))
    return Scene(description.background, tuple(objects), description.relation)


def _every_description(category: Category) -> list[SceneDescription]:
    kinds = [ObjectDescription(*pair) for pair in product(SHAPES, COLOURS)]
    if category == "one_object":
        return [SceneDescription(b, (o,)) for b, o in product(BACKGROUNDS, kinds)]
    if category == "spelling":
        words = [ObjectDescription(WORD, colour, w) for w, colour in product(WORDS, COLOURS)]
        return [SceneDescription(b, (word,)) for word, b in product(words, BACKGROUNDS)]
    if category == "counting":
        triples = product(BACKGROUNDS, kinds, COUNT_WORDS)
        return [SceneDescription(b, (o,) * n) for b, o, n in triples]
    quadruples = product(BACKGROUNDS, kinds, kinds, ("left of", "above"))
    return [SceneDescription(b, (o, p), r) for b, o, p, r in quadruples if o != p]


def _digest(description: SceneDescription) -> bytes:
    if text := description.objects[0].text:  # a word is held out in all its colours, or in none
        return hashlib.sha256(text.encode()).digest()
    words = [description.background, description.relation or ""]
    words += [word for o in description.objects for word in (o.shape, o.colour)]
    return hashlib.sha256(" ".join(map(str, words)).encode()).digest()


def _place_pair(
    relation: str, rng: np.random.Generator
) -> tuple[tuple[float, ...], list[Position]]:
    """Draw radii and positions of two objects along the relation's axis, the first one first."""
    r0, r1 = (float(r) for r in rng.uniform(*PAIR_RADIUS, size=2))
    slack = 1 - 2 * MARGIN - GAP - 2 * (r0 + r1)
    before, after = sorted(slack * rng.random(2))
    near = MARGIN + before + r0  # centre of the object nearer to the origin, radius r0
    far = 1 - MARGIN - (slack - after) - r1
    reach = MAX_SLOPE * (far - near)
    low, high = MARGIN + max(r0, r1), 1 - MARGIN - max(r0, r1)
    a = rng.uniform(low, high)
    b = rng.uniform(max(low, a - reach), min(high, a + reach))
    ends = [(near, r0, a), (far, r1, b)]
    if relation in ("right of", "below"):
        ends.reverse()
    horizontal = relation in ("left of", "right of")
    positions = [(along, across) if horizontal else (across, along) for along, _, across in ends]
    return tuple(radius for _, radius, _ in ends), positions


def _place_word(rng: np.random.Generator) -> tuple[tuple[float, ...], list[Position]]:
    radius = float(rng.uniform(*WORD_RADIUS))
    x, y = (
        float(rng.uniform(MARGIN + reach, 1 - MARGIN - reach))
        for reach in (radius, radius * WORD_ASPECT)
    )
    return (radius,), [(x, y)]


def _scatter(count: int, rng: np.random.Generator) -> tuple[tuple[float, ...], list[Position]]:
    """Draw one radius for all and random positions whose bounding boxes keep the gap."""
    radius = float(rng.uniform(*RADIUS[count]))
    room = 1 - 2 * (MARGIN + radius)
    distance = 2 * radius + GAP
    while True:  # crowded draws can leave no room for the last object: start over
        placed: list[Position] = []
        for x, y in (MARGIN + radius + room * rng.random((8 * count, 2))).tolist():
            if all(max(abs(x - u), abs(y - v)) >= distance for u, v in placed):
                placed.append((x, y))
            if len(placed) == count:
                return (radius,) * count, placed
