"""Proves that metrics are measured while training, and that the best model is the best one."""

import itertools
import json

import pytest

from tinydiffusion.cli.main import main
from tinydiffusion.evaluation import on_the_way
from tinydiffusion.pipeline import TextToImage

EVERY = ["--evaluation.every", "16", "--evaluation.every_num_images", "4"]
BEST = ["--evaluation.keep_best", "pixel_fd"]


def rows(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def values(monkeypatch):
    """What pixel_fd is said to be, evaluation by evaluation; lower is better."""
    given = iter([9.0, 5.0, 3.0, 4.0, 8.0])

    def evaluate(pipeline, evaluators, reference, **options):
        score = {"name": "pixel_fd", "value": next(given), "higher_is_better": False}
        return [{**score, "ci95": None, "n": 4, "warnings": [], "details": {}}]

    monkeypatch.setattr(on_the_way, "evaluate_pipeline", evaluate)


def test_metrics_are_measured_on_the_way(tiny, tmp_path, finished, unchanged):
    run_dir = tmp_path / "run"
    assert main(["train", "--config", tiny, "--run-dir", str(run_dir), *EVERY, *BEST]) == 0
    measured = {row["pictures_seen"]: row["pixel_fd"] for row in rows(run_dir) if "pixel_fd" in row}
    assert list(measured) == [0, 16, 32, 48, 64]
    assert len(set(measured.values())) > 1
    record = json.loads((run_dir / "best.json").read_text())
    assert record["value"] == min(measured.values()) == measured[record["pictures_seen"]]
    weights = "network/diffusion_pytorch_model.safetensors"
    assert unchanged(run_dir / "model")[weights] == unchanged(finished / "model")[weights]
    assert TextToImage.from_pretrained(run_dir / "best").image_shape == (3, 16, 16)


def test_the_best_model_is_that_of_its_moment(tiny, tmp_path, values, unchanged, monkeypatch):
    saved = []
    save = TextToImage.save_pretrained
    monkeypatch.setattr(
        TextToImage, "save_pretrained", lambda self, to: saved.append(to.name) or save(self, to)
    )
    run_dir = tmp_path / "run"
    assert main(["train", "--config", tiny, "--run-dir", str(run_dir), *EVERY, *BEST]) == 0
    assert saved == ["best", "best", "best", "model"]  # 9, 5, 3; neither 4 nor 8
    record = json.loads((run_dir / "best.json").read_text())
    assert record == {"name": "pixel_fd", "value": 3.0, "pictures_seen": 32}
    weights = "network/diffusion_pytorch_model.safetensors"
    assert unchanged(run_dir / "best")[weights] != unchanged(run_dir / "model")[weights]


def test_a_best_model_from_beyond_a_checkpoint_is_void(tiny, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    command = ["train", "--config", tiny, "--run-dir", str(run_dir), *EVERY, *BEST]
    assert main(command) == 0
    record = {"name": "pixel_fd", "value": -1.0, "pictures_seen": 48}
    (run_dir / "best.json").write_text(json.dumps(record))
    (run_dir / "report.json").unlink()
    first = run_dir / "checkpoints/000001-pictures-32"
    assert main([*command, "--resume", str(first)]) == 0
    assert json.loads((run_dir / "best.json").read_text())["value"] >= 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--evaluation.every", "0"], "evaluation.every must be at least 1"),
        ([*EVERY, "--evaluation.metrics", "[]"], "have metrics to measure"),
        (BEST, "evaluation.keep_best needs evaluation.every"),
        (["--evaluation.every_num_images", "1"], "evaluation.every_num_images must be at least 2"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tiny, tmp_path, mistake, flags, message):
    assert message in mistake("train", "--config", tiny, "--run-dir", str(tmp_path / "a"), *flags)


def test_a_row_that_is_none_is_named_before_the_first_step(tiny, tmp_path, capsys):
    flags = [*EVERY, "--evaluation.keep_best", "fid"]
    assert main(["train", "--config", tiny, "--run-dir", str(tmp_path / "a"), *flags]) == 2
    assert "'fid' is no row of the metrics; there are pixel_fd" in capsys.readouterr().err
    assert not any("loss" in row and "progress" in row for row in rows(tmp_path / "a"))


def test_a_metric_that_fails_is_a_warning(tiny, tmp_path, monkeypatch, capsys):
    from tinydiffusion.evaluators.pixel_fd import PixelFD

    counts = itertools.count()

    def compute(self):
        raise RuntimeError(f"boom {next(counts)}")

    monkeypatch.setattr(PixelFD, "compute", compute)
    run_dir = tmp_path / "run"
    assert main(["train", "--config", tiny, "--run-dir", str(run_dir), *EVERY]) == 1
    assert "warning: pixel_fd: RuntimeError: boom 0" in capsys.readouterr().err
