"""Proves what `train` writes, refuses and resumes; a mistake ends in one line before it runs."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from tinydiffusion.build import build_dataset
from tinydiffusion.cli.main import main
from tinydiffusion.config import load
from tinydiffusion.pictures.fonts import LINE_HEIGHT
from tinydiffusion.pictures.grid import GAP

# ---- a run -----------------------------------------------------------------------------------


def test_a_run_leaves_what_it_promises(finished):
    written = {str(file.relative_to(finished)) for file in finished.rglob("*") if file.is_file()}
    assert written >= {
        "config.yaml", "metrics.jsonl", "report.json", "grid.png", "model/model_index.json",
        "samples/00000000.png", "samples/00000032.png", "samples/00000064.png",
    }  # fmt: skip
    names = sorted(folder.name for folder in (finished / "checkpoints").iterdir())
    assert names == ["000001-pictures-32", "000002-pictures-64"]


def test_the_resolved_config_is_saved(finished, tiny):
    assert load(finished / "config.yaml") == load(tiny)
    saved = yaml.safe_load((finished / "config.yaml").read_text())
    assert saved["training"]["learning_rate"] == 1e-3  # a default


def test_metrics_hold_loss_validation_loss_and_grids(finished):
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    seen = {
        name: [row["pictures_seen"] for row in rows if name in row]
        for name in ("loss", "validation_loss", "grid")
    }
    assert seen["loss"] == [16, 32, 48, 64]
    assert seen["validation_loss"] == seen["grid"] == [0, 32, 64]


def test_grids_show_the_prompts_that_they_name(finished):
    with Image.open(finished / "samples/00000064.png") as grid:
        assert len(json.loads(grid.text["prompts"])) == 4
        assert grid.text["seed"] == "0"
        assert grid.width == 4 * (96 + GAP) + GAP
        assert grid.height > 96 + 2 * LINE_HEIGHT  # prompt and seed are under each
    with Image.open(finished / "grid.png") as grid:
        assert grid.height > 96 + 2 * LINE_HEIGHT
        assert grid.text.keys() >= {"prompts", "seed", "Software"}


def test_the_report_has_a_row_for_every_result(finished):
    report = json.loads((finished / "report.json").read_text())
    assert report["schema"] == "tinydiffusion.eval/1"
    assert report["context"]["pictures_seen"] == 64
    assert report["context"]["environment"]["torch"]
    assert report["context"]["config"]["training"]["batch_size"] == 8
    rows = {row["name"]: row for row in report["results"]}
    assert rows.keys() == {"pixel_fd", "pictures_per_second"}
    for row in rows.values():
        assert {"name", "value", "ci95", "n", "evaluator", "provenance"} <= row.keys()
    assert rows["pixel_fd"]["n"] == 8
    assert rows["pictures_per_second"]["value"] > 0


def test_the_model_has_the_average_weights_of_the_last_checkpoint(finished):
    last = finished / "checkpoints/000002-pictures-64"
    average, latest = (load_file(last / f"{part}.safetensors") for part in ("ema", "model"))
    for part, prefix in (("network", "denoiser.network"), ("text_encoder", "text_encoder")):
        weights = load_file(finished / f"model/{part}/diffusion_pytorch_model.safetensors")
        assert weights
        for name, tensor in weights.items():
            assert torch.equal(tensor, average[f"{prefix}.{name}"])
        assert any(not torch.equal(w, latest[f"{prefix}.{name}"]) for name, w in weights.items())


def test_output_ends_with_a_table_and_the_next_command(tiny, tmp_path, capsys):
    """Word for word, brackets included, which the terminal library would take for a style."""
    run_dir = tmp_path / "[bold]" / ("long" * 20)
    flags = ["--sampling.prompts", "['[red] circle', '[/b] x']"]
    assert main(["train", "--config", tiny, "--run-dir", str(run_dir), *flags]) == 0
    captured = capsys.readouterr()
    assert "pixel_fd" in captured.out
    assert "training set: 32 pictures of 16x16" in captured.err
    assert "validation set: 8 pictures of 16x16" in captured.err
    assert "  - '[red] circle'\n  - '[/b] x'\n" in captured.err
    assert captured.err.splitlines()[-1].startswith(f'next: python sample.py {run_dir}/model "')


def test_without_validation_or_metrics_there_is_still_a_grid(tiny, tmp_path):
    flags = ["--validation", "null", "--evaluation.metrics", "[]", "--training.num_pictures", "8"]
    run_dir = tmp_path / "run"
    assert main(["train", "--config", tiny, "--run-dir", str(run_dir), *flags]) == 0
    assert (run_dir / "grid.png").is_file()
    (row,) = json.loads((run_dir / "report.json").read_text())["results"]
    assert row["name"] == "pictures_per_second"


def test_grids_of_other_pictures_show_captions_of_theirs(tiny, tmp_path, capsys):
    """... and all of them the same ones, which the run names."""
    file = tmp_path / "named.yaml"
    settings = yaml.safe_load(Path(tiny).read_text())
    settings["sampling"]["prompts"] = ["an emoji of a rose"]
    file.write_text(yaml.safe_dump(settings))
    run_dir = tmp_path / "run"
    flags = ["--dataset.num_scenes", "16", "--evaluation.metrics", "[]"]
    flags += ["--training.num_pictures", "8"]
    assert main(["train", "--config", str(file), "--run-dir", str(run_dir), *flags]) == 0
    error = capsys.readouterr().err
    assert f"warning: sampling.prompts of {file} are for its own data set" in error
    assert "grids: 2 captions of the training set, then 2 of the validation set" in error
    assert load(run_dir / "config.yaml").sampling.prompts == ()
    with Image.open(run_dir / "samples/00000008.png") as grid:
        shown = json.loads(grid.text["prompts"])
    captions = [
        build_dataset(load(run_dir / "config.yaml").dataset)[i]["caption"] for i in range(16)
    ]
    assert all(any(prompt in each for each in captions) for prompt in shown[:2])
    assert f'model "{shown[0]}"' in error


# ---- dry run ---------------------------------------------------------------------------------


def test_a_dry_run_trains_nothing_and_writes_nothing(tiny, tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert main(["train", "--config", tiny, "--run-dir", str(run_dir), "--dry-run"]) == 0
    error = capsys.readouterr().err
    assert "learning_rate: 0.001" in error
    assert "pictures/s" in error
    assert "minutes of training" in error
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_run_leaves_it_alone(finished, tiny, unchanged):
    before = unchanged(finished)
    assert main(["train", "--config", tiny, "--run-dir", str(finished), "--dry-run"]) == 0
    assert unchanged(finished) == before


def test_prompts_that_are_too_long_are_counted(tiny, tmp_path, capsys):
    flags = ["--sampling.prompts", f"[a red circle, {'x ' * 500}]", "--training.num_pictures", "8"]
    run_dir = str(tmp_path / "run")
    assert main(["train", "--config", tiny, "--run-dir", run_dir, "--dry-run", *flags]) == 0
    assert "1 of 2 sampling.prompts are cut to" in capsys.readouterr().err


def test_a_dry_run_says_where_the_time_limit_ends_the_run(tiny, tmp_path, capsys):
    flags = ["--training.max_minutes", "0.001", "--training.num_pictures", "1000000"]
    run_dir = str(tmp_path / "run")
    assert main(["train", "--config", tiny, "--run-dir", run_dir, "--dry-run", *flags]) == 0
    assert "max_minutes 0.001 ends the run after about" in " ".join(capsys.readouterr().err.split())


# ---- mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--training.batch_sise", "3"], "unknown key 'training.batch_sise'"),
        (["--training.batch_siz", "3"], "unknown key 'training.batch_siz'"),
        (["--training.batch_size", "many"], "training.batch_size must be int, got 'many'"),
        (["--training.batch_size", "0"], "batch_size must be at least 1"),
        (["--training.accumulation", "3"], "training.batch_size 8 must be a multiple"),
        (["--training.learning_rate", "0"], "learning_rate must be positive"),
        (["--training.device", "gpu"], "training.device 'gpu' is not available"),
        (["--sampling.sampler", "eulr"], "unknown sampler 'eulr' (did you mean 'euler'?)"),
        (["--sampling.sampler", "diffusers"], "sampler 'diffusers' needs the option 'scheduler'"),
        (["--sampling.steps", "0"], "num_inference_steps must be in [1, 1000]"),
        (["--sampling.spacing", "even"], "unknown spacing 'even'"),
        (["--sampling.every", "0"], "sampling.every must be at least 1, got 0"),
        (["--sampling.num_prompts", "0"], "sampling.num_prompts must be at least 1, got 0"),
        (["--evaluation.num_images", "0"], "evaluation.num_images must be at least 1, got 0"),
        (["--evaluation.metrics", "[pixel_fs]"], "unknown evaluator 'pixel_fs'"),
        (["--evaluation.options", "{fid: {}}"], "options for 'fid', which is not among"),
        (["--validation", "null"], "evaluation.reference is 'validation', but there is no"),
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--dataset.size", "15"], "size=15"),
        (["--dataset.sise", "16"], "unknown key 'dataset.sise' (did you mean 'dataset.size'?)"),
        (["--validation.splt", "x"], "'validation.splt' (did you mean 'validation.split'?)"),
        (["--network.chanels", "[32]"], "(did you mean 'network.channels'?)"),
        (["--network.channels", "32"], "network.channels must be list[int], got 32"),
        (["--network.channels", "[32, 48]"], "multiples of head_dim 32, got 48"),
        (["--text_encoder.width", "wide"], "text_encoder.width must be int, got 'wide'"),
        (["--text_encoder.name", "clp"], "unknown text_encoder 'clp' (did you mean 'clip'?)"),
        (["--objective.weighting", "min_snt"], "unknown weighting 'min_snt'"),
        (["--objective.gamma", "big"], "objective.gamma must be float, got 'big'"),
        (["--diffusion.schedule", "flaw"], "unknown schedule 'flaw' (did you mean 'flow'?)"),
        (["--diffusion.prediction_type", "epsilon"], "cannot be used with a schedule that ends"),
        (["--config"], "--config"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_no_folder(tiny, tmp_path, mistake, flags, message):
    run_dir = tmp_path / "run"
    line = mistake("train", "--config", tiny, "--run-dir", str(run_dir), *flags)
    assert message in line
    assert not run_dir.exists()


def test_a_missing_data_folder_is_named(folder_config, tmp_path, mistake):
    config = folder_config(tmp_path / "nowhere")
    line = mistake("train", "--config", config, "--evaluation.reference", "train")
    assert line == f"no such folder: {tmp_path / 'nowhere'}"


def test_a_folder_without_captions_is_named(folder_config, tmp_path, mistake):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (16, 16)).save(pictures / "a.png")
    line = mistake("train", "--config", folder_config(pictures), "--evaluation.reference", "train")
    assert line.startswith(f"no captions in {pictures}")
    assert "metadata.jsonl" in line


def test_a_missing_config_is_named(mistake):
    assert mistake("train", "--config", "nope.yaml") == "there is no config file nope.yaml"


@pytest.mark.parametrize(
    ("run_dir", "message"),
    [("file", "is a file"), ("file/run", "is a file"), ("x" * 300, "File name too long")],
)
def test_a_run_dir_that_cannot_be_is_named_first(tiny, tmp_path, mistake, run_dir, message):
    (tmp_path / "file").write_text("")
    line = mistake("train", "--config", tiny, "--run-dir", str(tmp_path / run_dir))
    assert "cannot be written: " in line
    assert message.casefold() in line.casefold()
