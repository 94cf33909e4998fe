"""Proves whole runs: the smoke config, a run that is killed and resumed, and a model that obeys."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tinydiffusion.cli.main import main
from tinydiffusion.run import sanity as ladder

ROOT = Path(__file__).parents[1]


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


# ---- the smoke config ------------------------------------------------------------------------


ONE_WORKER = pytest.mark.xdist_group("the smoke config")  # which trains it once


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("smoke") / "run"
    config = str(ROOT / "configs/smoke.yaml")
    assert main(["train", "--config", config, "--run-dir", str(run_dir)]) == 0
    return run_dir


@ONE_WORKER
def test_smoke_leaves_checkpoints_grids_a_model_and_a_report(smoke):
    names = [folder.name for folder in sorted((smoke / "checkpoints").iterdir())]
    assert names == ["000001-pictures-1024", "000002-pictures-2048"]
    grids = sorted(file.name for file in (smoke / "samples").iterdir())
    assert grids == ["00000000.png", "00001024.png", "00002048.png"]
    with Image.open(smoke / "grid.png") as grid:
        assert min(grid.size) > 100  # eight prompts, in one row
    assert (smoke / "model/model_index.json").is_file()
    assert not [f for f in contents(smoke) if Path(f).suffix in {".pt", ".pth", ".pkl", ".bin"}]


@ONE_WORKER
def test_smoke_reports_what_the_next_reader_looks_for(smoke):
    results = json.loads((smoke / "report.json").read_text())["results"]
    rows = {row["name"]: row for row in results}
    for name in ("", "/one_object", "/two_objects"):
        row = rows[f"scene_accuracy{name}"]
        assert row["n"] > 0
        low, high = row["ci95"]
        assert 0 <= low <= row["value"] <= high <= 1
    assert rows["scene_accuracy"]["n"] == 32
    assert rows["scene_accuracy/one_object"]["n"] + rows["scene_accuracy/two_objects"]["n"] == 32
    assert rows["pixel_fd"]["value"] > 0
    assert rows["pictures_per_second"]["value"] > 0


@ONE_WORKER
def test_smoke_learns_something(smoke):
    lines = (smoke / "metrics.jsonl").read_text().splitlines()
    losses = [row["validation_loss"] for row in map(json.loads, lines) if "validation_loss" in row]
    assert losses[-1] < 0.8 * losses[0]


@ONE_WORKER
@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
def test_smoke_model_makes_the_same_bytes_in_any_batch(smoke, tmp_path, sampler):
    prompt = "a red circle left of a blue square on a white background"
    flags = ["--num-images", "8", "--seed", "0", "--sampler", sampler, "--steps", "4"]
    for size in ("1", "8"):
        out = ["--batch-size", size, "--out", str(tmp_path / size)]
        assert main(["sample", str(smoke / "model"), prompt, *flags, *out]) == 0
    assert contents(tmp_path / "1") == contents(tmp_path / "8")


# ---- stopped and resumed ---------------------------------------------------------------------

KILLED = {
    "dataset": {"name": "scenes", "size": 16, "num_scenes": 64},
    "validation": {"split": "held_out", "num_scenes": 8},
    "text_encoder": {"name": "clip", "width": 32, "layers": 1, "heads": 2},
    "network": {"name": "unet", "channels": [32, 32], "layers_per_block": 1, "dropout": 0.1},
    "training": {
        "num_pictures": 1280, "batch_size": 16, "warmup_pictures": 160, "precision": "float32",
        "muon_modules": ["text_encoder"], "device": "cpu", "checkpoint_every": 320, "log_every": 16,
    },
    "sampling": {"steps": 2, "every": 320, "num_prompts": 2},
}  # fmt: skip


def start(config: Path, run_dir: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "train.py", "--config", str(config), "--run-dir", str(run_dir)]
    return subprocess.Popen(
        [*command, *flags],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def stop_in_the_middle(process: subprocess.Popen) -> str:
    """Ends the run with SIGTERM in or after a random one of its first 50 steps; its output."""
    shown = [next(process.stderr)]
    rows = random.randint(1, 50)
    while rows:
        shown.append(next(process.stderr))
        rows -= " pictures  loss " in shown[-1]
    process.send_signal(signal.SIGTERM)
    return "".join([*shown, process.communicate()[1]])


def test_a_run_stopped_by_sigterm_and_resumed_ends_in_the_same_bits(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(KILLED))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(["train", "--config", str(config), "--run-dir", str(whole)]) == 0

    process = start(config, broken)
    shown = stop_in_the_middle(process)
    assert process.returncode == 143, shown
    assert "stopped by SIGTERM; the same command goes on" in shown
    assert not (broken / "model").exists()

    process = start(config, broken)
    shown = process.communicate()[1]
    assert process.returncode == 0, shown
    assert "resuming from picture " in shown
    assert contents(broken / "model") == contents(whole / "model")
    newest = [sorted((run / "checkpoints").iterdir())[-1] for run in (whole, broken)]
    for name in ("model", "ema", "optimizer"):
        left, right = ((folder / f"{name}.safetensors").read_bytes() for folder in newest)
        assert left == right, name
    assert contents(broken / "samples") == contents(whole / "samples")


# ---- a model that obeys ----------------------------------------------------------------------

OBEYS = {
    "dataset": {"name": "scenes", "size": 16, "num_scenes": 8},
    "text_encoder": {"name": "clip", "width": 32, "layers": 1, "heads": 2},
    "network": {"name": "unet", "channels": [32, 64], "layers_per_block": 1},
    "training": {"learning_rate": 5e-3, "precision": "float32", "device": "cpu"},
    "sampling": {"steps": 10},
}
VERDICT = re.compile(r"(PASS|FAIL)  .*: (?:error|share) ([\d.]+), at (?:most|least)")


@pytest.fixture
def climb(tmp_path, monkeypatch, capsys):
    """The sanity ladder on one and on two pictures; its exit code and its three numbers.

    Trained on one for so many steps of 4 pictures each, and on two for so many.
    """
    monkeypatch.setattr(ladder, "NUM_PICTURES", 2)
    monkeypatch.setattr(ladder, "BATCH_SIZE", 4)

    def climb(one: int, two: int, *flags: str) -> tuple[int, list[float]]:
        monkeypatch.setattr(ladder, "FIRST", 4 * one)
        monkeypatch.setattr(ladder, "EACH_MORE", 4 * (two - one))
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(OBEYS))
        code = main(["sanity", "--config", str(config), *flags])
        verdicts = VERDICT.findall(capsys.readouterr().out)
        assert code == ("FAIL" in [verdict for verdict, _ in verdicts])
        return code, [float(value) for _, value in verdicts]

    return climb


def test_a_picture_is_learned_by_heart_and_swapped_captions_swap_pictures(climb):
    code, (error, own, swapped) = climb(400, 200)
    assert error < ladder.MAX_ERROR
    assert (own, swapped) == (1.0, 1.0)
    assert code == 0


def test_a_model_that_cannot_read_fails_the_ladder(climb):
    code, (error, own, swapped) = climb(2, 200, "--objective.caption_dropout_prob", "1.0")
    assert error > 0.1  # two steps teach nothing
    assert min(own, swapped) < 1  # the noise alone decides
    assert code == 1


def test_where_few_pictures_are_denoised_the_ladder_shows_more(climb, monkeypatch):
    asked, trainer = [], ladder.Trainer

    def asked_for(learner, batches, **options):
        asked.append((batches.batch_size, options["num_pictures"]))
        return trainer(learner, batches, **options)

    monkeypatch.setattr(ladder, "Trainer", asked_for)
    climb(2, 3, "--objective.denoise_every", "4")
    assert asked == [(16, 32), (16, 48)]
