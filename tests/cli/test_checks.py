"""Proves that impossible mixes of settings are refused before data are read or time is spent."""

import pytest
import torch
from PIL import Image

from tinydiffusion.build import build_dataset, build_evaluators, build_objective
from tinydiffusion.cli.main import main
from tinydiffusion.config import Config, SamplingConfig, TrainingConfig, from_dict
from tinydiffusion.run import train as train_command
from tinydiffusion.run.checks import BOUNDS, check_config, check_fits

CPU = torch.device("cpu")
TINY = {
    "dataset": {"name": "scenes", "size": 16, "num_scenes": 8},
    "text_encoder": {"name": "clip", "width": 32, "layers": 1, "heads": 2},
    "network": {"name": "unet", "channels": [32], "layers_per_block": 1, "attention_levels": []},
}


# ---- without the data ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--objective.caption_dropout_prob", "0"],
            "sampling.guidance_scale 2 needs a model that has also learned pictures without "
            "captions: set objective.caption_dropout_prob above 0, or sampling.guidance_scale to 1",
        ),
        (
            ["--training.accumulation", "3"],
            "training.batch_size 8 must be a multiple of training.accumulation 3",
        ),
        (
            ["--validation", "null"],
            "evaluation.reference is 'validation', but there is no validation set; add one, or set "
            "evaluation.reference to 'train'",
        ),
        (
            ["--diffusion.prediction_type", "epsilon"],
            "prediction_type 'epsilon' cannot be used with a schedule that ends in pure noise "
            "(cosine, flow, zero_terminal_snr); use 'v_prediction', 'sample' or 'flow'",
        ),
        (
            ["--sampling.steps", "2000"],
            "num_inference_steps must be in [1, 1000] with trailing spacing, got 2000",
        ),
        (["--evaluation.metrics", "[pixel_fd, pixel_fd]"], "the metric 'pixel_fd' is named twice"),
        (
            ["--evaluation.options", "{pixel_df: {}}"],
            "options for 'pixel_df', which is not among the metrics (did you mean 'pixel_fd'?): "
            "pixel_fd",
        ),
        (
            ["--training.device", "meta"],
            "training.device 'meta' is not available: it computes nothing",
        ),
    ],
)  # fmt: skip
def test_a_mix_is_refused_before_the_data_are_read(tiny, mistake, monkeypatch, flags, message):
    monkeypatch.setattr(train_command, "build_training", lambda _: pytest.fail("read the data"))
    assert mistake("train", "--config", tiny, "--dry-run", *flags) == message


@pytest.mark.parametrize("key", BOUNDS)
def test_numbers_beyond_their_bounds_are_refused(key, tiny, mistake):
    least, most = BOUNDS[key]
    below = mistake("train", "--config", tiny, f"--{key}={least - 1}")
    above = mistake("train", "--config", tiny, f"--{key}={most + 1}")
    assert below.startswith(f"{key} must be at least {least}, got {least - 1}")
    assert above.startswith(f"{key} must be at most {most}, got {most + 1}")


def test_what_is_unusual_but_possible_is_accepted():
    check_config(
        from_dict(
            {
                **TINY,
                "objective": {"name": "denoising", "caption_dropout_prob": 0.0},
                "training": {"checkpoint_every": 10**9, "batch_size": 64},  # of 8 pictures
                "sampling": {"guidance_scale": 1.0, "prompts": ["x " * 500]},
            }
        )
    )
    check_config(Config(sampling=SamplingConfig(every=10**9), training=TrainingConfig(log_every=1)))


# ---- with one picture ------------------------------------------------------------------------


def try_out(metrics=(), reference=None, **changes) -> None:
    config = from_dict({**TINY, **changes})
    dataset = build_dataset(config.dataset)
    evaluators = build_evaluators(metrics, {})
    check_fits(
        build_objective(config, ["a red circle"]), evaluators, dataset, reference or dataset, CPU
    )


def test_a_size_that_the_patches_do_not_divide_is_refused():
    network = {**TINY["network"], "patch_size": 3}
    with pytest.raises(ValueError, match=r"size \(16, 16\) must be a multiple of patch_size 3"):
        try_out(network=network)


def test_a_metric_that_cannot_judge_the_captions_is_refused(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("my holiday")
    folder = build_dataset({"name": "folder", "path": str(tmp_path), "size": 16})
    with pytest.raises(ValueError, match="my holiday"):
        try_out(["scene_accuracy"], folder)


def test_a_reference_of_another_size_is_refused():
    objective = build_objective(from_dict(TINY), ["a red circle"])
    datasets = [build_dataset({**TINY["dataset"], "size": size}) for size in (16, 32)]
    with pytest.raises(ValueError, match="validation set are 32x32, those of training 16x16"):
        check_fits(objective, {}, *datasets, CPU)


def test_trying_out_leaves_no_trace():
    evaluators = build_evaluators(["scene_accuracy", "pixel_fd", "retrieval"], {})
    dropout = {**TINY["network"], "dropout": 0.5}
    config = from_dict({**TINY, "network": dropout})
    objective, dataset = build_objective(config, ["a red circle"]), build_dataset(config.dataset)
    weights = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    before = torch.get_rng_state()
    check_fits(objective, evaluators, dataset, dataset, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, weights[n]) for n, tensor in objective.state_dict().items())
    assert all(p.grad is None for p in objective.parameters())
    fresh = build_evaluators(list(evaluators), {})
    for name, evaluator in evaluators.items():
        for key, (tensor, merge) in evaluator.state().items():
            expected = fresh[name].state()[key]
            assert torch.equal(tensor, expected[0]), (name, key)
            assert merge == expected[1]


def test_a_run_that_does_not_fit_leaves_no_folder(tiny, tmp_path, capsys):
    run_dir = tmp_path / "run"
    flags = ["--network.patch_size", "3", "--dataset.size", "16"]
    assert main(["train", "--config", tiny, "--run-dir", str(run_dir), *flags]) == 2
    assert "must be a multiple of patch_size 3" in capsys.readouterr().err
    assert not run_dir.exists()


# ---- secrets ---------------------------------------------------------------------------------


def test_nothing_of_the_environment_is_kept(tiny, tmp_path, monkeypatch, capsys):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "canary-4711")
    run_dir = tmp_path / "run"
    flags = ["--training.num_pictures", "8", "--training.tensorboard", "true"]
    assert main(["train", "--config", tiny, "--run-dir", str(run_dir), *flags]) == 0
    written = [file for file in run_dir.rglob("*") if file.is_file()]
    assert len(written) > 10
    assert not [file for file in written if b"canary" in file.read_bytes()]
    assert "canary" not in "".join(capsys.readouterr())
