"""Scene accuracy of drawn truths is 1, of planted mistakes exactly the share planted."""

import json

import numpy as np
import pytest
import torch

from tinydiffusion.evaluators.scene_accuracy import SceneAccuracy
from tinydiffusion.metrics.composition import derangement
from tinydiffusion.scenes.captions import caption
from tinydiffusion.scenes.render import render
from tinydiffusion.scenes.sampling import sample_scene


def draw(categories, seed=0):
    """Pictures and their true prompts, all different."""
    rng = np.random.default_rng(seed)
    scenes = {}
    for category in categories:
        while True:
            scene = sample_scene(rng, category, "train")
            description = scene.description.canonical()
            if description not in scenes:
                scenes[description] = scene
                break
    images = torch.stack([render(scene) for scene in scenes.values()])
    return images, [caption(scene.description) for scene in scenes.values()]


CATEGORIES = ["one_object", "two_objects"] * 10


@pytest.fixture(scope="module")
def drawn():
    return draw(CATEGORIES)


def rows(evaluator):
    return {score.name: score for score in evaluator.compute()}


def measure(batch, images, prompts):
    evaluator = SceneAccuracy()
    evaluator.update(batch("generated", images, prompts=prompts))
    return rows(evaluator)


def test_true_pictures_are_right_and_exchanged_prompts_are_not(batch, drawn):
    result = measure(batch, *drawn)
    assert list(result) == [
        "scene_accuracy",
        "scene_accuracy/one_object",
        "scene_accuracy/two_objects",
        "scene_accuracy/background",
        "scene_accuracy/exists",
        "scene_accuracy/count",
        "scene_accuracy/colour",
        "scene_accuracy/relation",
        "scene_accuracy/exclude",
        "scene_accuracy/conditions_3",
        "scene_accuracy/conditions_6",
        "scene_accuracy/skipped",
        "scene_accuracy/shuffled_captions",
    ]
    assert [score.value for score in result.values()] == [1] * 11 + [0] * 2
    assert result["scene_accuracy/relation"].n == 10
    assert result["scene_accuracy/shuffled_captions"].n == 20
    low, high = result["scene_accuracy"].ci95
    assert 0.8 < low < high == 1


def test_planted_mistakes_fall_on_their_attribute(batch, drawn):
    images, prompts = drawn
    prompts = list(prompts)
    images = images.clone()
    ground = prompts[0].split()[-2]
    prompts[0] = prompts[0].replace(ground, "black" if ground != "black" else "white")
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=generator)
    images[1] = noise  # not well-formed: skipped
    result = measure(batch, images, prompts)
    skipped = {"": 0.9, "/background": 0.9, "/skipped": 0.05, "/relation": 0.9}
    expected = {**skipped, "/exists": 28 / 30, "/colour": 28 / 30}  # a pair has two objects
    for row, value in expected.items():
        assert result[f"scene_accuracy{row}"].value == pytest.approx(value), row


def test_verdicts_per_prompt_are_for_the_report(batch, drawn):
    images, prompts = drawn
    evaluator = SceneAccuracy()
    evaluator.update(batch("generated", images[:2], prompts=prompts[:2], first_id=7))
    (first, second) = rows(evaluator)["scene_accuracy"].details["verdicts"]
    assert first == {
        "id": 7,
        "prompt": prompts[0],
        "tag": "one_object",
        "outcome": "right",
        "correct": True,
        "reason": "",
        "atoms": {
            "background": [True],
            "exists": [True],
            "count": [True],
            "colour": [True],
            "exclude": [True],
        },
    }
    assert second["atoms"]["relation"] == [True]
    assert second["atoms"]["exists"] == [True, True]
    json.dumps([first, second])


def test_counting_has_its_row_when_it_is_asked_for(batch):
    result = measure(batch, *draw(["counting"] * 3))
    assert result["scene_accuracy/counting"].value == 1
    assert "scene_accuracy/relation" not in result
    assert "scene_accuracy/one_object" not in result


def test_control_that_cannot_be_is_said(batch, drawn):
    images, prompts = drawn
    result = measure(batch, images[[0, 0, 2]], [prompts[0], prompts[0], prompts[2]])
    assert "scene_accuracy/shuffled_captions" not in result
    assert "no shuffled_captions control" in result["scene_accuracy"].warnings[0]


@pytest.mark.parametrize("items", ["abcdef", "aabbcc", "aaabcd", "abab", "aabbbcc"])
def test_derangement_uses_each_place_once_and_never_the_same_item(items):
    places = derangement(items, seed=0)
    assert sorted(places) == list(range(len(items)))
    assert all(items[place] != item for place, item in zip(places, items, strict=True))
    assert places == derangement(items, seed=0)


def test_derangement_is_impossible_when_one_item_holds_the_majority():
    assert derangement("aab", seed=0) is None
    assert derangement("a", seed=0) is None


def test_unreadable_prompt_is_named(batch, pictures):
    with pytest.raises(ValueError, match="cannot read the prompt 'a happy dog'"):
        measure(batch, pictures(1, 32), ["a happy dog"])


def test_no_picture_is_an_error():
    with pytest.raises(ValueError, match="no generated picture"):
        SceneAccuracy().compute()
