"""Proves that a pipeline says once what it cannot do of what it is asked for."""

import dataclasses
import warnings
from typing import Any, cast

import pytest
import torch
from model_toys import STEPS, random_model

from tinydiffusion.abilities import Captioned
from tinydiffusion.build import prescribed_sampling
from tinydiffusion.config import SamplingConfig
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.runtime.errors import SettingWarning
from tinydiffusion.survey import learn_words
from tinydiffusion.text import words
from tinydiffusion.text_encoders.clip import ClipTextEncoder

STUDENT = {
    "name": "distillation", "num_inference_steps": STEPS, "spacing": "trailing", "sampler": "euler",
}  # fmt: skip
TAUGHT = SamplingConfig(sampler="euler", steps=STEPS, guidance_scale=1.0)


@pytest.fixture
def model() -> TextToImage:
    return random_model()


@pytest.fixture
def distilled(model) -> TextToImage:
    config = dataclasses.replace(model.config, objective=STUDENT, sampling=TAUGHT)
    return TextToImage(model.network, model.text_encoder, config, model.image_shape)


def said(model: TextToImage, prompts: Any = "a red circle", **options: Any) -> list[str]:
    """What the call warns of; nothing is drawn."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.generate_batches(prompts, **options)
    assert all(each.category is SettingWarning for each in caught)
    return [str(each.message) for each in caught]


# ---- words -----------------------------------------------------------------------------------


def test_words_that_no_caption_had_are_named_in_one_line(model):
    model.text_encoder.learn_words([], are_all=True)
    prompts = ["a red circle.", "A RED dog, 7 circels?"]
    assert said(model, prompts, negative_prompt="ugly") == [
        '"dog", "7", "circels" (did you mean "circle"?), "ugly" never occur in the training '
        "captions"
    ]
    assert said(model, "a red fox") == ['"fox" never occurs in the training captions']
    assert said(model, prompts) == []


def test_words_of_a_part_of_the_captions_are_said_to_be_such(model):
    model.text_encoder.learn_words([], are_all=False)
    expected = '"dog" never occurs in the training captions that were looked at'
    assert said(model, "dog") == [expected]


def test_a_long_list_of_words_is_cut(model):
    letters = "abcdefghijklmnopqrstuvwxyz"
    (line,) = said(model, ["a " + " ".join(f"{letter}zzzq" for letter in letters)])
    assert line.count('"') == 2 * 20
    assert " and 6 more never occur in " in line


def test_an_encoder_without_such_knowledge_says_nothing(model):
    model.text_encoder.words = None
    assert said(model, "dog") == []


def test_known_words_survive_the_model_folder(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    opened = TextToImage.from_pretrained(tmp_path / "model")
    assert cast(ClipTextEncoder, opened.text_encoder).words == model.text_encoder.words
    assert said(opened, "a red dog") == said(model, "a red dog") != []


def test_words_are_limited_to_what_a_folder_holds(monkeypatch):
    monkeypatch.setattr(words, "MAX_BYTES", 10)
    encoder = ClipTextEncoder.from_captions(["red blue"], width=8, layers=1, heads=1)
    assert encoder.words == {"red", "blue"}
    encoder.learn_words(["green"], are_all=True)
    assert encoder.words is None
    encoder.learn_words(["red"], are_all=True)
    assert encoder.words is encoder.config()["words"] is None


@pytest.mark.parametrize(("told", "number", "all_words"), [(True, 20_000, True), (False, 3, True)])
def test_all_captions_are_asked_for_where_they_can_be_told(told, number, all_words):
    class Plain:
        def __len__(self) -> int:
            return number

        def __getitem__(self, index):
            raise AssertionError("a picture was read")

    class Told(Plain, Captioned):
        def captions(self) -> list[str]:
            return ["red", "green"]

    encoder = ClipTextEncoder.from_captions(["red"], width=8, layers=1, heads=1)
    learn_words(encoder, Told() if told else Plain(), ["red", "blue"])
    assert encoder.words == {"red", "green" if told else "blue"}
    assert encoder.all_words is all_words
    learn_words(encoder, Plain(), ["red"])
    assert encoder.all_words is (number <= 10_000)


# ---- settings --------------------------------------------------------------------------------


def test_a_negative_prompt_without_guidance_is_said_once_and_changes_nothing(model):
    plain = SamplingConfig(steps=1, guidance_scale=1.0)
    (line,) = said(model, negative_prompt="a blue square", sampling=plain)
    assert line.startswith("the negative prompt has no effect")
    assert said(model, negative_prompt="a red square", sampling=plain) == []
    images = [
        model.generate("a red circle", negative_prompt=each, sampling=plain)
        for each in ("", "a red square")
    ]
    assert torch.equal(*images)


def test_an_interval_without_a_step_is_said(model):
    """Of 4 steps of the flow the levels are 4095, 3, 1 and 1/3."""
    between = SamplingConfig(steps=STEPS, guidance_interval=(5.0, 100.0))
    lines = said(model, negative_prompt="a blue square", sampling=between)
    assert [line.split(" has ")[0] for line in lines] == ["guidance_scale", "the negative prompt"]
    assert said(model, sampling=dataclasses.replace(between, guidance_interval=(2.0, 3.0))) == []


def test_a_distilled_model_says_what_it_was_made_for(distilled):
    assert said(distilled) == said(distilled, sampling=TAUGHT) == []
    for other in (
        {"sampler": "heun"},
        {"steps": 3},
        {"spacing": "karras"},
        {"guidance_scale": 3.0},
    ):
        (line,) = said(distilled, sampling=dataclasses.replace(TAUGHT, **other))
        ((name, value),) = other.items()
        assert line == (
            "objective 'distillation' made this model for sampler 'euler', steps 4, spacing "
            f"'trailing', guidance_scale 1.0; expect worse pictures with {name} {value!r}"
        )


@pytest.mark.parametrize(
    "objective",
    [
        {"name": "denoising"},
        {"name": "not_installed"},
        {"name": "os:system"},
    ],
)
def test_other_objectives_prescribe_nothing(model, objective):
    config = dataclasses.replace(model.config, objective=objective)
    assert prescribed_sampling(config) == {}
    lacking = dataclasses.replace(model.config, objective={"name": "distillation"})
    assert prescribed_sampling(lacking) == {"guidance_scale": 1.0}
