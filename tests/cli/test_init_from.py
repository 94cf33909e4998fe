"""Proves that a run starts from the model that `init_from` names, or says why it cannot."""

import json
import shutil

import pytest
import torch

from tinydiffusion import config as config_file
from tinydiffusion.cli.main import main
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.run.train import _Run
from tinydiffusion.runtime.processes import ALONE

STUDENT = [
    "--objective.name", "distillation", "--objective.num_inference_steps", "2",
    "--objective.spacing", "trailing", "--objective.teacher_steps", "2",
    "--objective.sampler", "ddpm", "--sampling.sampler", "ddpm", "--sampling.steps", "2",
    "--sampling.guidance_scale", "1",
]  # fmt: skip


def run(tiny, run_dir, *flags):
    return _Run(config_file.load(tiny, flags), run_dir, ALONE)


def assert_same_weights(one, other):
    states = [dict(module.state_dict()) for module in (one, other)]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_a_run_begins_with_the_weights_and_the_vocabulary_of_the_model(tiny, model, tmp_path):
    started = run(tiny, tmp_path / "run", "--init_from", model, "--seed", "5")
    opened = TextToImage.from_pretrained(model)
    for here, there in (
        (started.objective.denoiser.network, opened.network),
        (started.objective.text_encoder, opened.text_encoder),
    ):
        torch.testing.assert_close(
            dict(here.state_dict()), dict(there.state_dict()), rtol=0, atol=0
        )
    assert started.objective.text_encoder.config() == opened.text_encoder.config()
    assert started.objective.denoiser.network.training


def test_a_student_is_taught_saved_and_sampled(tiny, model, tmp_path, capsys):
    folder = tmp_path / "run"
    flags = ["--config", tiny, "--run-dir", str(folder), "--init_from", model, *STUDENT]
    assert main(["train", *flags]) == 0
    student, teacher = (TextToImage.from_pretrained(f) for f in (folder / "model", model))
    assert student.config.init_from is None  # no path of this machine travels with the model
    weights = [torch.cat([p.flatten() for p in m.network.parameters()]) for m in (student, teacher)]
    assert not torch.equal(*weights)
    states = [m.text_encoder.state_dict() for m in (student, teacher)]
    torch.testing.assert_close(*(dict(state) for state in states), rtol=0, atol=0)
    assert (
        main(["sample", str(folder / "model"), "a red circle", "--out", str(tmp_path / "o")]) == 0
    )
    capsys.readouterr()
    assert main(["train", *flags]) == 0
    assert "is complete" in capsys.readouterr().err


def test_a_student_goes_on_from_its_checkpoint_to_the_same_bits(tiny, model, tmp_path, unchanged):
    flags = ["--config", tiny, "--init_from", model, *STUDENT]
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    assert main(["train", *flags, "--run-dir", str(whole)]) == 0
    shutil.copytree(whole, halted)
    shutil.rmtree(halted / "checkpoints/000002-pictures-64")
    shutil.rmtree(halted / "model")
    (halted / "report.json").unlink()
    assert main(["train", *flags, "--run-dir", str(halted)]) == 0
    assert unchanged(halted / "model") == unchanged(whole / "model")


def test_a_run_that_began_otherwise_is_not_gone_on_with(tiny, model, finished, tmp_path, capsys):
    copy = shutil.copytree(finished, tmp_path / "copy")
    flags = ["--training.num_pictures", "96", "--allow-change", "training.num_pictures"]
    command = ["train", "--config", tiny, "--run-dir", str(copy), "--init_from", model, *flags]
    assert main(command) == 2
    assert "init_from: None -> " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--network.channels", "[32, 64]"], "the shape of the network's down."),
        (["--text_encoder.width", "64"], "text_encoder.width is 32 there and 64 in this run"),
        (["--diffusion.schedule", "cosine"], "diffusion.schedule is flow there and cosine"),
        (
            [*STUDENT, "--sampling.guidance_scale", "2"],
            "sampling.guidance_scale must be 1.0, got 2.0",
        ),
        (
            [*STUDENT, "--sampling.spacing", "karras"],
            "sampling.spacing must be 'trailing', got 'karras': objective 'distillation' makes",
        ),
        (
            [*STUDENT, "--sampling.sampler", "euler"],
            "sampling.sampler must be 'ddpm', got 'euler': objective 'distillation' makes",
        ),
        ([*STUDENT, "--sampling.steps", "3"], "sampling.steps must be 2, got 3"),
    ],
)
def test_a_model_that_does_not_fit_is_named(tiny, model, tmp_path, mistake, flags, message):
    arguments = ["--config", tiny, "--run-dir", str(tmp_path / "run"), "--init_from", model]
    assert message in mistake("train", *arguments, *flags)


def test_a_folder_without_a_model_is_named(tiny, tmp_path, mistake):
    (empty := tmp_path / "empty").mkdir()
    for folder, what in (
        (tmp_path / "none", "there is no folder"),
        (empty, "model_index.json is missing"),
    ):
        line = mistake(
            "train",
            "--config",
            tiny,
            "--run-dir",
            str(tmp_path / "run"),
            "--init_from",
            str(folder),
        )
        assert what in line
        assert str(folder) in line


def test_a_student_without_a_teacher_is_refused(tiny, tmp_path, mistake):
    flags = ["--run-dir", str(tmp_path / "run"), *STUDENT]
    line = mistake("train", "--config", tiny, *flags)
    assert line.startswith("objective 'distillation' learns from the model that it starts from")


def test_what_is_saved_names_no_folder(tiny, model, tmp_path):
    started = run(tiny, tmp_path / "run", "--init_from", model)
    started.pipeline.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved/model_index.json").read_text())
    assert index["tinydiffusion_config"]["init_from"] is None
