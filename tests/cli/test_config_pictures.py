"""Proves that prompts of a config file do not outlive its pictures, and that this is said."""

from pathlib import Path

import pytest

from tinydiffusion.run.config_pictures import SAME_PICTURES, load_noting

EMOJI = """
dataset: {name: folder, path: emoji, size: 64, flip: true}
validation: {path: held-out}
sampling: {prompts: [an emoji of a rose]}
"""


def written(folder, text) -> Path:
    file = folder / "run.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("dataset.path", "mine"),
        ("dataset.name", "scenes"),
        ("dataset.caption_column", "title"),
        ("dataset.split", "train"),
        ("dataset", "{name: scenes}"),
    ],
)
def test_prompts_do_not_outlive_their_pictures(tmp_path, flag, value):
    file = written(tmp_path, EMOJI)
    settings, notes = load_noting(file, [f"--{flag}", value])
    assert settings.sampling.prompts == ()
    prompts, validation = notes
    assert prompts.startswith(f"sampling.prompts of {file} are for its own data set")
    assert validation.startswith(f"the validation set is still that of {file}")


@pytest.mark.parametrize("option", SAME_PICTURES)
def test_prompts_stay_where_the_same_pictures_are_read_otherwise(tmp_path, option):
    settings, notes = load_noting(written(tmp_path, EMOJI), [f"--dataset.{option}", "1"])
    assert settings.sampling.prompts == ("an emoji of a rose",)
    assert notes == []


@pytest.mark.parametrize(
    "flags", [[], ["--dataset.path", "emoji"], ["--training.batch_size", "1"], ["--seed", "1"]]
)
def test_prompts_stay_with_their_pictures(tmp_path, flags):
    settings, notes = load_noting(written(tmp_path, EMOJI), flags)
    assert settings.sampling.prompts == ("an emoji of a rose",)
    assert notes == []


@pytest.mark.parametrize("flag", ["--sampling.prompts=[mine]", "--sampling={prompts: [mine]}"])
@pytest.mark.parametrize("validation", ["--validation=null", "--validation.path=other"])
def test_what_is_named_beside_the_pictures_is_taken(tmp_path, flag, validation):
    flags = ["--dataset.path=mine", flag, validation]
    settings, notes = load_noting(written(tmp_path, EMOJI), flags)
    assert settings.sampling.prompts == ("mine",)
    assert notes == []


def test_a_validation_set_that_follows_the_training_set_needs_no_word(tmp_path):
    text = "dataset: {name: scenes}\nvalidation: {split: held_out}\n"
    _, notes = load_noting(written(tmp_path, text), ["--dataset.num_scenes", "5"])
    assert notes == []
