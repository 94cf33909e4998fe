"""The judge accepts true captions, refuses every caption with one attribute wrong, and skips."""

from functools import cache

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from tinydiffusion.scenes.captions import captions, parse, short_captions
from tinydiffusion.scenes.controls import wrong_descriptions
from tinydiffusion.scenes.geneval import from_record, to_prompt
from tinydiffusion.scenes.judge import compare, judge
from tinydiffusion.scenes.reading import COLOUR_LIMIT, connected_components, read
from tinydiffusion.scenes.render import render
from tinydiffusion.scenes.sampling import sample_scene
from tinydiffusion.scenes.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    Object,
    Scene,
)

CATEGORIES = ("one_object", "two_objects", "counting")  # of shapes
PAIR = "a red circle left of a blue square on a white background"


def draw(*objects, background="white", size=32):
    return render(Scene(background, tuple(Object(*o) for o in objects)), size)


@cache
def scenes(n):
    rng = np.random.default_rng(0)
    splits = ("train", "held_out")
    return [sample_scene(rng, CATEGORIES[i % 3], splits[i % 2]) for i in range(n)]


def compared(seen, description):
    return compare(seen, to_prompt(description, "", "")).outcome


def tally(n, size=32, change=lambda image: image):
    """(true captions accepted, wrong captions accepted, number of wrong captions)."""
    right = wrongly_right = num_wrong = 0
    for scene in scenes(n):
        seen = read(change(render(scene, size)))
        right += compared(seen, scene.description) == "right"
        for every in wrong_descriptions(scene.description).values():
            num_wrong += len(every)
            wrongly_right += sum(compared(seen, wrong) == "right" for wrong in every)
    return right, wrongly_right, num_wrong


def worn(image, rng, blur=0.5, noise=6.0):
    pixels = gaussian_filter(image.numpy().astype(np.float64), (0, blur, blur))
    pixels += rng.normal(0, noise, pixels.shape)
    return torch.from_numpy(pixels.round().clip(0, 255).astype(np.uint8))


def test_fresh_renders():
    right, wrongly_right, num_wrong = tally(2000)
    assert right >= 1998
    assert wrongly_right == 0
    assert num_wrong > 20_000  # every single wrong attribute, swaps included


def test_fresh_renders_at_64_pixels():
    right, wrongly_right, _ = tally(200, size=64)
    assert right == 200
    assert wrongly_right == 0


def test_blur_and_noise():
    rng = np.random.default_rng(0)
    right, wrongly_right, num_wrong = tally(500, change=lambda image: worn(image, rng))
    assert right >= 0.97 * 500
    assert wrongly_right <= 0.001 * num_wrong


def test_a_shift_of_all_colours():
    rng = np.random.default_rng(0)

    def shift(image):
        offset = torch.from_numpy(rng.integers(-12, 13, size=(3, 1, 1)))
        return (image + offset).clamp(0, 255).to(torch.uint8)

    right, wrongly_right, _ = tally(300, change=shift)
    assert right >= 0.97 * 300
    assert wrongly_right == 0


def test_specks_are_overlooked():
    image = draw(("circle", "red", 0.3, 0.5, 0.16), ("square", "blue", 0.75, 0.5, 0.16))
    image[:, 2, 2] = 0
    image[:, 29:31, 16] = 90
    assert judge(image, PAIR).outcome == "right"


def test_any_template_can_be_asked():
    for scene in scenes(60):
        told = [*captions(scene), *short_captions(scene)]
        assert all(judge(render(scene), text).outcome == "right" for text in told)


def test_short_captions_with_one_attribute_wrong_are_refused():
    num_wrong = 0
    for scene in scenes(200):
        seen = read(render(scene))
        for text in short_captions(scene)[::3]:
            for every in wrong_descriptions(parse(text)).values():
                num_wrong += len(every)
                assert not any(compared(seen, wrong) == "right" for wrong in every), text
    assert num_wrong > 5_000


@pytest.mark.parametrize(
    ("asked", "wrong"),
    [
        ("a red circle left of a blue square on a black background", {"background"}),
        ("a red circle right of a blue square on a white background", {"relation"}),
        ("a red circle above a blue square", {"relation"}),
        ("a circle above a square", {"relation"}),
        ("a blue circle left of a red square on a white background", {"colour", "relation"}),
        ("a blue circle and a red square", {"colour"}),
        ("a red square and a blue circle on a white background", {"colour"}),
        ("a blue square left of a red circle on a white background", {"relation"}),
        ("a red circle and a green square on a white background", {"colour"}),
        ("a circle and a triangle", {"exists", "count", "exclude"}),
        ("a red circle on a white background", {"exclude"}),
        ("two circles", {"count", "exclude"}),
        ("three blue circles", {"count", "colour", "exclude"}),
        ('the word "CAT" in red', {"exists", "count", "colour", "text"}),
    ],
)
def test_the_verdict_names_what_is_wrong(asked, wrong):
    image = draw(("circle", "red", 0.3, 0.5, 0.16), ("square", "blue", 0.75, 0.5, 0.16))
    verdict = judge(image, asked)
    assert verdict.outcome == "wrong"
    assert {atom.kind for atom in verdict.atoms if not atom.right} == wrong
    assert verdict.reason


def test_one_atom_for_each_thing_that_is_said():
    verdict = judge(draw(), PAIR)
    kinds = [atom.kind for atom in verdict.atoms]
    each = ["exists", "count", "colour"]
    assert kinds == ["background", *each, *each, "relation", "exclude"]
    assert [atom.right for atom in verdict.atoms] == [True, *[False] * 7, True]


def test_a_blank_picture_is_wrong_not_skipped():
    verdict = judge(draw(), "a red circle on a white background")
    assert verdict.outcome == "wrong"
    assert "expected circle>=1, found 0" in verdict.reason


def test_more_objects_than_captions_can_count_are_wrong():
    places = [(x, y) for x in (0.2, 0.5, 0.8) for y in (0.3, 0.7)]
    image = draw(*(("circle", "red", x, y, 0.1) for x, y in places))
    verdict = judge(image, "five red circles on a white background")
    assert verdict.reason == "expected circle<6, found 6"


def test_without_exclude_more_may_be_there_as_in_geneval():
    image = draw(("circle", "red", 0.3, 0.5, 0.16), ("square", "blue", 0.75, 0.5, 0.16))
    record = {"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}]}
    lenient = from_record({**record, "prompt": "a photo of a red circle"})
    strict = from_record({**record, "exclude": [{"class": "square", "count": 1}], "prompt": "no"})
    assert judge(image, lenient).outcome == "right"
    assert judge(image, strict).reason == "expected square<1"


def test_equal_shapes_need_objects_of_their_own():
    asked = "a red circle left of a blue circle on a white background"
    left, right = ("circle", "red", 0.3, 0.5, 0.16), ("circle", "blue", 0.75, 0.5, 0.16)
    assert judge(draw(left, right), asked).outcome == "right"
    one = judge(draw(left), asked)
    assert [a.right for a in one.atoms if a.kind == "exists"] == [True, False]
    assert [a.right for a in one.atoms if a.kind == "colour"] == [False, True]


def test_unrelated_objects_may_lie_on_a_diagonal():
    image = ILL_FORMED["diagonal"]
    assert judge(image, "a red circle and a blue square").outcome == "right"
    assert judge(image, PAIR).outcome == "skip"


NOISE = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8))
ILL_FORMED = {
    "noise": NOISE,
    "unknown background": torch.full((3, 32, 32), 80, dtype=torch.uint8),
    "diagonal": draw(("circle", "red", 0.3, 0.3, 0.15), ("square", "blue", 0.7, 0.7, 0.15)),
    "touching": draw(("circle", "red", 0.3, 0.5, 0.17), ("circle", "red", 0.6, 0.5, 0.17)),
    "two colours": draw(("circle", "red", 0.4, 0.5, 0.17), ("circle", "blue", 0.55, 0.5, 0.17)),
    "cut off": draw(("circle", "red", 0.02, 0.5, 0.18)),
    "bar": draw(*(("square", "red", x / 10, 0.5, 0.08) for x in range(2, 9))),
}


@pytest.mark.parametrize("name", ILL_FORMED)
def test_ill_formed_pictures_are_skipped(name):
    verdict = judge(ILL_FORMED[name], PAIR)
    assert verdict.outcome == "skip"
    assert not any(atom.right for atom in verdict.atoms)
    assert verdict.reason == "not well-formed"


def test_an_unknown_caption_is_an_error():
    with pytest.raises(ValueError, match="cannot read the caption 'a red dog'"):
        judge(draw(), "a red dog")


def test_the_palette_keeps_apart():
    rgb = torch.tensor([*COLOURS.values(), *BACKGROUNDS.values()], dtype=torch.float32)
    distances = torch.pdist(rgb)
    assert distances.min() > max(100, 2 * COLOUR_LIMIT)  # else a colour could fit two names


def test_connected_components_do_not_wrap_or_touch_at_corners():
    mask = np.array([[1, 0, 0, 1], [1, 0, 1, 0], [0, 0, 0, 1]], bool)
    parts = connected_components(mask)
    assert sorted(part.sum() for part in parts) == [1, 1, 1, 2]
    np.testing.assert_array_equal(np.sum(parts, axis=0), mask)
