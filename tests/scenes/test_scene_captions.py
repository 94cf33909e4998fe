"""Every caption of every template reads back as the scene it was written for."""

import pytest

from tinydiffusion.scenes.captions import caption, captions, parse
from tinydiffusion.scenes.sampling import combinations
from tinydiffusion.scenes.vocabulary import (
    CATEGORIES,
    Object,
    ObjectDescription,
    Scene,
    SceneDescription,
)

RED_CIRCLE = Object("circle", "red", 0.3, 0.5, 0.15)
BLUE_SQUARE = Object("square", "blue", 0.7, 0.5, 0.15)


def test_canonical_captions():
    one = Scene("white", (RED_CIRCLE,))
    two = Scene("white", (RED_CIRCLE, BLUE_SQUARE), "left of")
    three = Scene("white", (RED_CIRCLE,) * 3)
    assert captions(one)[0] == "a red circle on a white background"
    assert captions(two)[0] == "a red circle left of a blue square on a white background"
    assert captions(three)[0] == "three red circles on a white background"
    assert captions(two)[1] == "a blue square right of a red circle on a white background"
    assert caption(two.description) == captions(two)[0]


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_every_template_reads_back(category, split):
    for description in combinations(category, split):
        objects = tuple(Object(o.shape, o.colour, 0.5, 0.5, 0.1) for o in description.objects)
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
        "a red circle left of a blue square",
    ],
)
def test_other_texts_are_not_read(text):
    assert parse(text) is None


@pytest.mark.parametrize(
    "objects",
    [
        (),
        (RED_CIRCLE.description,) * 6,
        (RED_CIRCLE.description, BLUE_SQUARE.description),
    ],
)
def test_what_no_template_says_is_an_error(objects):
    with pytest.raises(ValueError, match="no caption says"):
        caption(SceneDescription("white", objects))
