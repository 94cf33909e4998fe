"""Controls have exactly one attribute wrong; held-out prompts are held out and repeatable."""

from itertools import combinations as pairs_of

import numpy as np
import pytest
from held_out import held_out_prompts

from tinydiffusion.scenes.captions import caption, parse
from tinydiffusion.scenes.controls import wrong_descriptions
from tinydiffusion.scenes.sampling import combinations, sample_scene
from tinydiffusion.scenes.vocabulary import CATEGORIES, ObjectDescription, SceneDescription

PAIR = SceneDescription(
    "white", (ObjectDescription("circle", "red"), ObjectDescription("square", "blue")), "left of"
)


def test_the_controls_of_a_pair():
    wrong = wrong_descriptions(PAIR)
    sizes = {name: len(every) for name, every in wrong.items()}
    assert sizes == {
        "background": 3,
        "count": 2,
        "shape": 4,
        "colour": 10,
        "relation": 3,
        "shape_swap": 1,
        "colour_swap": 1,
    }
    swapped = wrong["colour_swap"][0].objects
    assert swapped == (ObjectDescription("circle", "blue"), ObjectDescription("square", "red"))


def test_pairs_that_a_swap_leaves_alone_have_no_swap():
    green_circle = ObjectDescription("circle", "green")
    same_shape = SceneDescription("white", (PAIR.objects[0], green_circle), "left of")
    assert "shape_swap" not in wrong_descriptions(same_shape)
    assert wrong_descriptions(same_shape)["colour_swap"][0].objects == (
        green_circle,
        PAIR.objects[0],
    )


def test_what_is_not_said_is_not_changed():
    assert set(wrong_descriptions(parse("a circle and a square"))) == {"count", "shape"}
    assert set(wrong_descriptions(parse("a circle left of a square"))) == {
        "count",
        "shape",
        "shape_swap",
        "relation",
    }
    assert set(wrong_descriptions(parse("a red circle and a square"))) == {
        "count",
        "shape",
        "colour",
    }


def test_the_controls_of_a_word_differ_in_one_letter():
    wrong = wrong_descriptions(parse('the word "CAT" in red on a white background'))
    assert {name: len(every) for name, every in wrong.items()} == {
        "text": 3 * 25,
        "background": 3,
        "colour": 5,
    }
    texts = {d.objects[0].text for d in wrong["text"]}
    assert len(texts) == 75
    assert all(sum(a != b for a, b in zip(text, "CAT", strict=True)) == 1 for text in texts)


@pytest.mark.parametrize("category", CATEGORIES)
def test_wrong_descriptions_are_readable_and_never_true(category):
    rng = np.random.default_rng(0)
    for _ in range(50):
        scene = sample_scene(rng, category, "train")
        wrong = wrong_descriptions(scene.description)
        said = [parse(caption(each)) for every in wrong.values() for each in every]
        assert None not in said
        assert scene.description.canonical() not in {d.canonical() for d in said}


def test_held_out_prompts_are_held_out_in_equal_shares():
    prompts = held_out_prompts(90, categories=CATEGORIES)
    for i, text in enumerate(prompts):
        assert parse(text).canonical() in combinations(CATEGORIES[i % 4], "held_out")


def test_pairs_are_distinct_in_both_tellings_before_they_repeat():
    total = 2 * len(combinations("two_objects", "held_out"))
    prompts = held_out_prompts(total + 1, categories=("two_objects",))
    assert len(set(prompts)) == total
    first_half = {parse(text).canonical() for text in prompts[: total // 2]}
    assert len(first_half) == total // 2


def test_prompts_repeat_with_their_seed_and_are_prefixes():
    assert held_out_prompts(20) == held_out_prompts(50)[:20]
    assert all(
        held_out_prompts(20, seed=a) != held_out_prompts(20, seed=b)
        for a, b in pairs_of(range(3), 2)
    )


@pytest.mark.parametrize("arguments", [{"n": -1}, {"n": 3, "categories": ()}])
def test_no_prompts_to_give(arguments):
    with pytest.raises(ValueError, match="categories"):
        held_out_prompts(**arguments)
