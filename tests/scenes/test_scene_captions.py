"""Every caption of every template reads back as the scene it was written for."""

import pytest

from tinydiffusion.scenes.captions import caption, captions, parse, short_captions
from tinydiffusion.scenes.sampling import combinations
from tinydiffusion.scenes.vocabulary import (
    CATEGORIES,
    WORD,
    Object,
    ObjectDescription,
    Scene,
    SceneDescription,
)

RED_CIRCLE = Object("circle", "red", 0.3, 0.5, 0.15)
BLUE_SQUARE = Object("square", "blue", 0.7, 0.5, 0.15)
CAT = Object(WORD, "red", 0.5, 0.5, 0.45, "CAT")


def test_canonical_captions():
    one = Scene("white", (RED_CIRCLE,))
    two = Scene("white", (RED_CIRCLE, BLUE_SQUARE), "left of")
    three = Scene("white", (RED_CIRCLE,) * 3)
    cat = Scene("white", (CAT,))
    assert captions(one)[0] == "a red circle on a white background"
    assert captions(two)[0] == "a red circle left of a blue square on a white background"
    assert captions(three)[0] == "three red circles on a white background"
    assert captions(cat)[0] == 'the word "CAT" in red on a white background'
    assert captions(two)[1] == "a blue square right of a red circle on a white background"
    assert caption(two.description) == captions(two)[0]


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_every_template_reads_back(category, split):
    for description in combinations(category, split):
        objects = tuple(
            Object(o.shape, o.colour, 0.5, 0.5, 0.1, o.text) for o in description.objects
        )
        told = captions(Scene(description.background, objects, description.relation))
        assert len(set(told)) == len(told) >= 4
        for text in told:
            said = parse(text)
            assert said is not None
            assert said.canonical() == description.canonical(), text


def test_parse_keeps_the_order_that_was_said():
    said = parse("a blue square below a red circle on a black background")
    blue_square, red_circle = (
        ObjectDescription("square", "blue"),
        ObjectDescription("circle", "red"),
    )
    assert said == SceneDescription("black", (blue_square, red_circle), "below")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red dog on a white background",
        "a red circle on a white background.",
        "six red circles on a white background",
        "a red circle left of a blue square on white",
        "a red circle left of a blue square and a red square",
        'the word "CATS" in red on a white background',
        'the word "cat" in red on a white background',
    ],
)
def test_other_texts_are_not_read(text):
    assert parse(text) is None


def test_short_captions_of_a_pair_leave_out_every_part():
    pair = Scene("white", (RED_CIRCLE, BLUE_SQUARE), "left of")
    told = short_captions(pair)
    assert len(told) == len(set(told)) == 2 * (2 * 3 * 2 - 1)  # ground, colours, relation
    assert {
        "a circle and a square",
        "a circle left of a square on a white background",
        "a red circle and a blue square",
        "a red circle and a square",
        "a square right of a circle",
    } <= set(told)
    assert not set(told) & set(captions(pair))


@pytest.mark.parametrize(
    ("scene", "told"),
    [
        ((RED_CIRCLE,), ["a circle on a white background", "a red circle", "a circle"]),
        (
            (RED_CIRCLE,) * 3,
            ["three circles on a white background", "three red circles", "three circles"],
        ),
        ((CAT,), ['the word "CAT" in red']),
    ],
)
def test_short_captions_of_one_thing(scene, told):
    assert short_captions(Scene("white", scene)) == told


def test_equal_shapes_are_never_told_without_their_colours():
    blue_circle = Object("circle", "blue", 0.7, 0.5, 0.15)
    told = short_captions(Scene("white", (RED_CIRCLE, blue_circle), "left of"))
    assert len(told) == 6
    assert all("red" in text and "blue" in text for text in told)


@pytest.mark.parametrize(
    "objects",
    [
        (),
        (RED_CIRCLE.description,) * 6,
        (RED_CIRCLE.description, BLUE_SQUARE.description, CAT.description),
    ],
)
def test_what_no_template_says_is_an_error(objects):
    with pytest.raises(ValueError, match="no caption says"):
        caption(SceneDescription("white", objects))
