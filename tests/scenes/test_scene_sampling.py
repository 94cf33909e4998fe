"""Scenes keep the renderer's rules, and a fifth of the combinations never enters training."""

from itertools import combinations as pairs_of

import numpy as np
import pytest

from tinydiffusion.scenes import sampling
from tinydiffusion.scenes.font import WORD_ASPECT, WORDS
from tinydiffusion.scenes.sampling import combinations, sample_scene
from tinydiffusion.scenes.vocabulary import (
    BACKGROUNDS,
    CATEGORIES,
    COLOURS,
    COUNT_WORDS,
    SHAPES,
    WORD,
)


def scenes(category, split="train", n=300):
    rng = np.random.default_rng(0)
    return [sample_scene(rng, category, split) for _ in range(n)]


@pytest.mark.parametrize(
    ("category", "total"),
    [
        ("one_object", 4 * 18),
        ("two_objects", 4 * 18 * 17 * 2),  # A left of B == B right of A
        ("counting", 4 * 18 * 4),
        ("spelling", 4 * 6 * len(WORDS)),
    ],
)
def test_splits_are_disjoint_and_a_fifth_is_held_out(category, total):
    train, held_out = (set(combinations(category, split)) for split in ("train", "held_out"))
    assert not train & held_out
    assert len(train) + len(held_out) == total
    assert len(held_out) == total // 5


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_single_attribute_is_trained_on(category):
    train = combinations(category, "train")
    assert {d.background for d in train} == set(BACKGROUNDS)
    kinds = {(o.shape, o.colour) for d in train for o in d.objects}
    assert len(kinds) == len(COLOURS) * (1 if category == "spelling" else len(SHAPES))
    if category == "counting":
        assert {len(d.objects) for d in train} == set(COUNT_WORDS)


def test_held_out_words_are_never_trained_on_but_their_letters_are():
    train, held_out = (
        {d.objects[0].text for d in combinations("spelling", split)}
        for split in ("train", "held_out")
    )
    assert not train & held_out
    assert len(held_out) == len(WORDS) // 5
    assert set("".join(train)) == set("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def test_held_out_combinations_never_change():
    """Published numbers name this split; a change of the hash would leak it into training."""
    first = combinations("one_object", "held_out")[0]
    assert (first.background, first.objects[0].colour, first.objects[0].shape) == (
        "black",
        "cyan",
        "square",
    )


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_scenes_come_from_their_split(category, split):
    allowed = set(combinations(category, split))
    assert all(s.description.canonical() in allowed for s in scenes(category, split))


@pytest.mark.parametrize("category", CATEGORIES)
def test_objects_stay_inside_and_keep_the_gap(category):
    for scene in scenes(category):
        for o in scene.objects:
            aspect = WORD_ASPECT if o.shape == WORD else 1
            for place, radius in ((o.x, o.radius), (o.y, o.radius * aspect)):
                reach = sampling.MARGIN + radius - 1e-9
                assert reach <= place <= 1 - reach
        for o, p in pairs_of(scene.objects, 2):
            distance = max(abs(o.x - p.x), abs(o.y - p.y))
            assert distance >= o.radius + p.radius + sampling.GAP - 1e-9


def test_pairs_differ_stand_in_their_relation_and_off_the_diagonal():
    for scene in scenes("two_objects"):
        first, second = scene.objects
        assert first.description != second.description
        dx, dy = second.x - first.x, second.y - first.y
        along = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[scene.relation]
        across = dy if scene.relation in ("left of", "right of") else dx
        assert along > 0
        assert abs(across) <= sampling.MAX_SLOPE * along + 1e-9


def test_all_relations_and_counts_occur():
    assert {s.relation for s in scenes("two_objects")} == {"left of", "right of", "above", "below"}
    assert {len(s.objects) for s in scenes("counting")} == {2, 3, 4, 5}
