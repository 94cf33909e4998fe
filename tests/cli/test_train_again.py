"""Proves that the same command goes on where a run stopped, and what it refuses to go on with."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from tinydiffusion.cli.main import main
from tinydiffusion.objectives.denoising import DenoisingObjective


@pytest.fixture
def copy(finished, tmp_path):
    """The finished run once more, to be changed."""
    return shutil.copytree(finished, tmp_path / "copy")


# ---- again -----------------------------------------------------------------------------------


def test_the_same_command_goes_on_from_the_newest_checkpoint(
    copy, tiny, finished, unchanged, capsys
):
    shutil.rmtree(copy / "checkpoints/000002-pictures-64")
    shutil.rmtree(copy / "model")
    assert main(["train", "--config", tiny, "--run-dir", str(copy)]) == 0
    assert "resuming from picture 32" in capsys.readouterr().err
    assert unchanged(copy / "model") == unchanged(finished / "model")
    assert json.loads((copy / "report.json").read_text())["context"]["pictures_seen"] == 64


def test_a_complete_run_is_left_as_it_is(finished, tiny, unchanged, capsys):
    before = unchanged(finished)
    assert main(["train", "--config", tiny, "--run-dir", str(finished)]) == 0
    assert "is complete" in capsys.readouterr().err
    assert unchanged(finished) == before


def test_a_run_that_died_before_its_report_makes_it(copy, tiny, finished, unchanged):
    shutil.rmtree(copy / "model")
    (copy / "report.json").unlink()
    assert main(["train", "--config", tiny, "--run-dir", str(copy)]) == 0
    for part in ("model", "checkpoints"):
        assert unchanged(copy / part) == unchanged(finished / part)
    assert (copy / "report.json").is_file()


def test_a_named_checkpoint_is_taken_and_has_no_stand_in(copy, tiny, finished, capsys, unchanged):
    (copy / "report.json").unlink()
    first = copy / "checkpoints/000001-pictures-32"
    command = ["train", "--config", tiny, "--run-dir", str(copy), "--resume", str(first)]
    assert main(command) == 0
    assert "resuming from picture 32" in capsys.readouterr().err
    assert unchanged(copy / "model") == unchanged(finished / "model")
    assert main([*command[:-1], str(copy / "checkpoints/000009-pictures-9")]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_other_settings_are_named_and_refused(copy, tiny, capsys, unchanged):
    before = unchanged(copy)
    flags = ["--training.learning_rate", "0.5", "--network.channels", "[32, 64]"]
    assert main(["train", "--config", tiny, "--run-dir", str(copy), *flags]) == 2
    error = capsys.readouterr().err
    assert "training.learning_rate: 0.001 -> 0.5" in error
    assert "network.channels: [32, 32] -> [32, 64]" in error
    assert "--allow-change" in error
    assert unchanged(copy) == before


def test_other_settings_are_taken_when_asked_for(copy, tiny, capsys):
    flags = ["--training.num_pictures", "96", "--training.learning_rate", "0.002"]
    command = ["train", "--config", tiny, "--run-dir", str(copy), *flags]
    assert main([*command, "--allow-change", "training.num_pictures"]) == 2
    assert "num_pictures" not in capsys.readouterr().err.partition("error: ")[2]
    assert main([*command, "--allow-change", "training"]) == 0
    assert "changed: training.learning_rate: 0.001 -> 0.002" in capsys.readouterr().err
    assert json.loads((copy / "report.json").read_text())["context"]["pictures_seen"] == 96


def test_another_network_is_never_taken(copy, tiny, mistake):
    flags = ["--allow-change", "network.channels", "--network.channels", "[32, 64]"]
    line = mistake("train", "--config", tiny, "--run-dir", str(copy), *flags)
    assert line.startswith("--allow-change network.channels: another network")


def test_what_does_not_touch_the_weights_may_change(copy, tiny, finished):
    shutil.rmtree(copy / "checkpoints/000002-pictures-64")
    flags = ["--training.log_every", "8", "--training.num_workers", "1", "--sampling.steps", "1"]
    assert main(["train", "--config", tiny, "--run-dir", str(copy), *flags]) == 0
    weights = "model/network/diffusion_pytorch_model.safetensors"
    assert (copy / weights).read_bytes() == (finished / weights).read_bytes()


def test_two_processes_do_not_train_in_one_folder(copy, tiny, capsys):
    (copy / "report.json").unlink()
    holder = "import sys, time; from pathlib import Path; from tinydiffusion.runtime.locks import "
    holder += "FolderLock\nwith FolderLock(Path(sys.argv[1])):\n"
    holder += "    print('held', flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(copy)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        assert main(["train", "--config", tiny, "--run-dir", str(copy)]) == 2
        assert f"is in use by process {process.pid} on" in capsys.readouterr().err
        process.kill()
    assert main(["train", "--config", tiny, "--run-dir", str(copy)]) == 0


# ---- other pictures --------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path):
    """Ten captioned pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(10):
        Image.new("RGB", (16, 16), (25 * i, 0, 0)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"red of strength {i}")
    return folder


@pytest.fixture
def trained(folder_config, pictures, tmp_path):
    """The command of a run on the pictures that has got half way."""
    flags = ["--evaluation.metrics", "[]", "--training.num_pictures", "32"]
    command = ["train", "--config", folder_config(pictures), "--run-dir", str(tmp_path / "run")]
    assert main([*command, *flags]) == 0
    return [*command, *flags[:2], "--training.num_pictures", "64"]


def test_changed_pictures_are_counted_and_refused(trained, pictures, capsys):
    (pictures / "3.png").unlink()
    (pictures / "3.txt").unlink()
    (pictures / "4.txt").write_text("another caption")
    Image.new("RGB", (16, 16), "blue").save(pictures / "new.png")
    (pictures / "new.txt").write_text("newly made blue")
    capsys.readouterr()
    command = [*trained, "--allow-change", "training.num_pictures"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert (
        "data: 1 added (first 'new.png'), 1 removed (first '3.png'), 1 edited (first '4." in error
    )
    assert main([*command, "data"]) == 0
    assert "changed: data: 1 added" in capsys.readouterr().err


def test_the_vocabulary_stays_that_of_the_first_captions(trained, pictures, tmp_path):
    config = tmp_path / "run/model/text_encoder/config.json"
    before = json.loads(config.read_text())
    for i in range(10):
        (pictures / f"{i}.txt").write_text(f"zebra quagga okapi {i}")
    assert main([*trained, "--allow-change", "training.num_pictures", "data"]) == 0
    after = json.loads(config.read_text())
    assert {"zebra", "quagga", "okapi"} <= set(after["words"])  # which are trained on by now
    assert {**after, "words": None} == {**before, "words": None}


# ---- signals and faults ----------------------------------------------------------------------


def test_sigusr1_saves_and_goes_on_and_sigterm_ends(tiny, tmp_path, finished, unchanged):
    command = [
        sys.executable,
        "-m",
        "tinydiffusion.cli.main",
        "train",
        "--config",
        tiny,
        "--run-dir",
    ]
    run_dir = tmp_path / "run"
    flags = ["--training.checkpoint_every", "1000000", "--training.num_pictures", "1000000"]
    flags += ["--training.compile", "never"]
    with subprocess.Popen(
        [*command, str(run_dir), *flags, "--training.log_every", "8"], stderr=subprocess.PIPE
    ) as process:
        _wait_for(lambda: _num_rows(run_dir) > 2)
        process.send_signal(signal.SIGUSR1)
        _wait_for(lambda: len(list((run_dir / "checkpoints").glob("0*"))) == 1)
        rows = _num_rows(run_dir)
        _wait_for(lambda: _num_rows(run_dir) > rows + 2)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert b"the same command goes on" in error
    assert len(list((run_dir / "checkpoints").glob("0*"))) == 2


def _num_rows(run_dir):
    file = run_dir / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def _wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_lack_of_memory_ends_with_an_ordered_list(tiny, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(DenoisingObjective, "loss", fail)
    assert main(["train", "--config", tiny, "--run-dir", str(tmp_path / "run")]) == 6
    error = capsys.readouterr().err.partition("error: ")[2]
    start = (
        r"out of memory on cpu \(peak \d+\.\d GiB of \d+\.\d GiB\)\. In this order:\n  1\. raise tr"
    )
    assert re.match(start, error)
