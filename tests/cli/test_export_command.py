"""Proves that `export` makes the model that a run would have saved, and of nothing but a run."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tinydiffusion.cli.main import main
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.training.checkpoints import folder as checkpoints

FIRST, LAST = "checkpoints/000001-pictures-32", "checkpoints/000002-pictures-64"
SHORT = ["--training.num_pictures", "8", "--evaluation.metrics", "[]"]


@pytest.mark.parametrize("source", ["", LAST])
def test_the_last_checkpoint_gives_the_model_of_the_run(
    finished, tmp_path, unchanged, capsys, source
):
    assert main(["export", str(finished / source), str(tmp_path / "out")]) == 0
    assert unchanged(tmp_path / "out") == unchanged(finished / "model")
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{finished / LAST}, 64 pictures seen, exported to {tmp_path / 'out'}"


def test_one_checkpoint_gives_its_averaged_weights_wherever_it_lies(finished, tmp_path):
    moved = shutil.copytree(finished / FIRST, tmp_path / "moved")
    assert main(["export", str(moved), str(tmp_path / "out")]) == 0
    weights = load_file(tmp_path / "out/network/diffusion_pytorch_model.safetensors")
    average = load_file(finished / FIRST / "ema.safetensors")
    assert weights
    for name, tensor in weights.items():
        assert torch.equal(tensor, average[f"denoiser.network.{name}"])


def test_a_stopped_run_gives_a_model_without_its_pictures(folder_config, tmp_path):
    """... with the captions' vocabulary: it draws."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(10):
        Image.new("RGB", (16, 16), (25 * i, 0, 0)).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text(f"quagga number {i}")
    run_dir = tmp_path / "run"
    config = folder_config(pictures)
    assert main(["train", "--config", config, "--run-dir", str(run_dir), *SHORT]) == 0
    made = TextToImage.from_pretrained(run_dir / "model")
    shutil.rmtree(pictures)
    shutil.rmtree(run_dir / "model")
    (run_dir / "text_encoder.json").unlink()
    assert main(["export", str(run_dir), str(tmp_path / "out")]) == 0
    exported = TextToImage.from_pretrained(tmp_path / "out")
    prompts = ["quagga number 3"]
    assert torch.equal(exported.generate(prompts), made.generate(prompts))


@pytest.mark.filterwarnings("always::UserWarning")
def test_a_damaged_checkpoint_has_the_one_before_for_stand_in(finished, tmp_path, capsys):
    copy = shutil.copytree(finished, tmp_path / "copy")
    (copy / LAST / "ema.safetensors").write_bytes(b"cut")
    assert main(["export", str(copy), str(tmp_path / "out")]) == 0
    error = capsys.readouterr().err
    assert "trying the one before" in error
    assert "32 pictures seen" in error
    assert main(["export", str(copy / LAST), str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()


def test_a_model_that_is_there_is_replaced_where_asked_for(finished, untrained, tmp_path, capsys):
    out = shutil.copytree(untrained, tmp_path / "out")
    before = (out / "model_index.json").read_bytes()
    assert main(["export", str(finished), str(out)]) == 2
    assert "holds a model; name another folder, or --overwrite" in capsys.readouterr().err
    assert (out / "model_index.json").read_bytes() == before
    assert main(["export", str(finished), str(out), "--overwrite"]) == 0
    assert capsys.readouterr().err.endswith(f"{out}, in place of the model that was there\n")
    assert (out / "model_index.json").read_bytes() == (
        finished / "model/model_index.json"
    ).read_bytes()


def test_a_folder_of_something_else_is_left_alone(finished, tmp_path, mistake, unchanged):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert "is there, but no model" in mistake("export", str(finished), str(out))
    assert unchanged(out) == {"mine.txt": b"mine"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("model", "is a model already"),
        ("samples", "is neither a run with a checkpoint nor a checkpoint"),
        ("nowhere", "is neither a run with a checkpoint nor a checkpoint"),
        ("grid.png", "is neither a run with a checkpoint nor a checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_named(finished, tmp_path, mistake, source, message):
    line = mistake("export", str(finished / source), str(tmp_path / "out"))
    assert line.startswith(f"{finished / source} ")
    assert message in line


def test_a_checkpoint_of_an_older_version_is_named(finished, tmp_path, mistake):
    whole = checkpoints.load_checkpoint(finished / LAST)
    state = {name: value for name, value in whole.state.items() if name != "about"}
    folder = checkpoints.CheckpointFolder(tmp_path / "run/checkpoints")
    folder.save(whole._replace(state=state), pictures_seen=64)
    line = mistake("export", str(tmp_path / "run"), str(tmp_path / "out"))
    assert "was written by an older version" in line


def test_a_run_that_began_with_a_model_needs_that_model(tiny, model, tmp_path, mistake, unchanged):
    start = shutil.copytree(model, tmp_path / "start")
    run_dir = tmp_path / "run"
    command = ["train", "--config", tiny, "--run-dir", str(run_dir), "--init_from", str(start)]
    assert main([*command, *SHORT]) == 0
    assert main(["export", str(run_dir), str(tmp_path / "out")]) == 0
    assert unchanged(tmp_path / "out") == unchanged(run_dir / "model")
    index = json.loads((start / "model_index.json").read_text())
    (start / "model_index.json").write_text(json.dumps(index, indent=1))
    line = mistake("export", str(run_dir), str(tmp_path / "again"))
    assert "is not the model any more" in line
    shutil.rmtree(start)
    line = mistake("export", str(run_dir), str(tmp_path / "again"))
    assert line.startswith(f"there is no folder {start}")
