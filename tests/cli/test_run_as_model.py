"""Proves that a run stands for its model wherever a model is asked for, and that it is said."""

import shutil

import pytest
import torch

from tinydiffusion.cli.main import main
from tinydiffusion.model_folder.opening import ModelFolderError
from tinydiffusion.pipeline import TextToImage


@pytest.fixture
def without_model(finished, tmp_path):
    """A run that has checkpoints, but no model yet."""
    copy = shutil.copytree(finished, tmp_path / "copy")
    shutil.rmtree(copy / "model")
    return copy


def commands(folder, tiny, out):
    """Every command that takes a model, with this folder for one."""
    return {
        "sample": ["sample", str(folder), "a red circle", "--out", str(out)],
        "evaluate": ["evaluate", str(folder), "--metrics", "pixel_fd", "--num-images", "8"],
        "train": ["train", "--config", tiny, "--run-dir", str(out), "--init_from", str(folder),
                  "--training.num_pictures", "8", "--evaluation.num_images", "2"],
    }  # fmt: skip


@pytest.mark.parametrize("command", ["sample", "evaluate", "train"])
@pytest.mark.filterwarnings("always::UserWarning")
def test_a_run_is_opened_as_its_model_and_that_is_said(finished, tiny, tmp_path, capsys, command):
    assert main(commands(finished, tiny, tmp_path / "out")[command]) == 0
    said = f"warning: {finished} is a run: its model {finished / 'model'} is used"
    assert capsys.readouterr().err.splitlines().count(said) == 1


def test_a_run_is_opened_as_its_model_in_python(finished):
    with pytest.warns(UserWarning, match=r"is a run: its model .* is used"):
        opened = TextToImage.from_pretrained(finished)
    expected = TextToImage.from_pretrained(str(finished / "model"))
    assert torch.equal(opened.generate(["x"]), expected.generate(["x"]))


@pytest.mark.parametrize("command", ["sample", "evaluate", "train"])
@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("", "is a run without a model; make one of its newest checkpoint: tinydiffusion export "),
        ("checkpoints", "holds the checkpoints of a run, not a model; make one of its newest"),
        ("checkpoints/000001-pictures-32", "is a checkpoint, not a model; make one of it: tiny"),
        ("samples", "holds the sample grids of a run, not single pictures"),
    ],
)
def test_where_there_is_no_model_the_way_to_one_is_named(
    without_model, tiny, tmp_path, mistake, command, part, told
):
    line = mistake(*commands(without_model / part, tiny, tmp_path / "out")[command])
    assert line.startswith(f"{without_model / part} {told}")
    assert not (tmp_path / "out").exists()


def test_the_way_to_a_model_works(without_model, tmp_path):
    with pytest.raises(ModelFolderError, match="tinydiffusion export") as error:
        TextToImage.from_pretrained(without_model)
    _, _, words = str(error.value).partition("tinydiffusion ")
    made = tmp_path / "made"
    assert main([word if word != "FOLDER" else str(made) for word in words.split()]) == 0
    TextToImage.from_pretrained(made)


def test_a_run_that_has_not_begun_to_learn_is_to_be_trained(without_model, mistake, tmp_path):
    shutil.rmtree(without_model / "checkpoints")
    line = mistake("sample", str(without_model), "x", "--out", str(tmp_path / "out"))
    assert (
        line
        == f"{without_model} is a run without a model; it has no checkpoint either: train it first"
    )


def test_pictures_that_are_called_samples_are_measured(model, finished, tmp_path):
    """The name alone makes no sample grids of a run."""
    out = tmp_path / "samples"
    assert main(["sample", model, "a red circle", "--num-images", "8", "--out", str(out)]) == 0
    data = ["--data", str(out)]
    assert main(["evaluate", str(out), "--metrics", "pixel_fd", *data]) == 0
