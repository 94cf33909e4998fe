"""Proves that a run replaces nothing in its folder that it could not make again."""

import shutil

import pytest

from tinydiffusion.cli.main import main
from tinydiffusion.evaluation.on_the_way import BEST, RECORD
from tinydiffusion.run import folder as run_folder


@pytest.fixture
def copy(finished, tmp_path):
    """The finished run once more, to be changed."""
    return shutil.copytree(finished, tmp_path / "copy")


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


# ---- a finished run --------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [["model"], ["grid.png"], ["model", "grid.png"]])
def test_what_a_finished_run_has_lost_is_made_again(copy, finished, tiny, unchanged, capsys, gone):
    for name in gone:
        remove(copy / name)
    assert main(["train", "--config", tiny, "--run-dir", str(copy)]) == 0
    said = " and ".join(str(copy / name) for name in gone)
    assert f"{said} made again from its last checkpoint" in capsys.readouterr().err
    for name in ("model", "checkpoints", "samples"):
        assert unchanged(copy / name) == unchanged(finished / name)
    for name in ("grid.png", "report.json", "config.yaml"):
        assert (copy / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.parametrize("flags", [[], ["--seed", "5"], ["--training.num_pictures", "128"]])
@pytest.mark.parametrize("left", ["model", "grid.png", "report.json", "best"])
def test_results_without_checkpoints_are_not_trained_over(
    copy, tiny, mistake, unchanged, left, flags
):
    shutil.copytree(copy / "model", copy / "best")
    for name in {"model", "grid.png", "report.json", "best", "checkpoints"} - {left}:
        remove(copy / name)
    before = unchanged(copy)
    line = mistake("train", "--config", tiny, "--run-dir", str(copy), *flags)
    assert line.startswith(f"{copy} holds {left} of a run whose checkpoints are gone")
    assert "--run-dir" in line
    assert unchanged(copy) == before


def test_the_best_model_of_the_start_is_no_reason_not_to_begin(copy, tiny):
    """A run that is killed before its first checkpoint has it."""
    shutil.copytree(copy / "model", copy / BEST)
    (copy / RECORD).write_text('{"name": "pixel_fd", "value": 1.0, "pictures_seen": 0}')
    for name in ("model", "grid.png", "report.json", "checkpoints"):
        remove(copy / name)
    assert main(["train", "--config", tiny, "--run-dir", str(copy), "--dry-run"]) == 0


def test_the_names_are_those_of_what_a_run_writes(finished):
    assert run_folder.missing_results(finished) == []
    assert run_folder.BEST == BEST
    assert run_folder.BEST_RECORD == RECORD


# ---- config.yaml -----------------------------------------------------------------------------


def begun(folder):
    """Have the folder of a finished run be that of one killed before its first checkpoint."""
    for name in ("model", "grid.png", "report.json", "checkpoints"):
        remove(folder / name)
    return folder


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed: 7\n", "dataset.num_scenes: '(absent)' -> 32"),
        ("nonsense: [\n", "config.yaml"),
        ("# notes of mine\n", "was not written by a run"),
    ],
)
def test_a_config_of_the_user_is_not_replaced(tiny, tmp_path, mistake, unchanged, text, told):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(text)
    line = mistake("train", "--config", tiny, "--run-dir", str(run_dir))
    assert line.startswith(f"{run_dir / 'config.yaml'} was not written by a run")
    assert told in line
    assert unchanged(run_dir) == {"config.yaml": text.encode()}


def test_an_edited_config_without_checkpoints_is_not_replaced(copy, tiny, mistake, unchanged):
    file = begun(copy) / "config.yaml"
    file.write_text(file.read_text().replace("learning_rate: 0.001", "learning_rate: 0.5"))
    before = unchanged(copy)
    line = mistake("train", "--config", tiny, "--run-dir", str(copy))
    assert "training.learning_rate: 0.5 -> 0.001" in line
    assert unchanged(copy) == before


@pytest.mark.parametrize("flags", [[], ["--training.learning_rate", "0.002"]])
def test_the_config_of_a_run_that_learned_nothing_is_replaced(copy, tiny, flags):
    """The advice after a failed start is to change a setting and to start again."""
    flags = [*flags, "--evaluation.metrics", "[]"]
    assert main(["train", "--config", tiny, "--run-dir", str(begun(copy)), *flags]) == 0


def test_an_edited_config_of_a_run_is_named_before_it_is_replaced(copy, finished, tiny, capsys):
    (copy / "report.json").unlink()
    file = copy / "config.yaml"
    file.write_text(file.read_text().replace("learning_rate: 0.001", "learning_rate: 0.5"))
    assert main(["train", "--config", tiny, "--run-dir", str(copy)]) == 0
    said = f"{file} was edited and is replaced: training.learning_rate: 0.5 -> 0.001"
    assert said in capsys.readouterr().err
    assert file.read_bytes() == (finished / "config.yaml").read_bytes()


def test_a_config_that_the_run_wrote_is_replaced_in_silence(copy, tiny, capsys):
    (copy / "report.json").unlink()
    flags = ["--sampling.steps", "1"]  # may change between two starts
    assert main(["train", "--config", tiny, "--run-dir", str(copy), *flags]) == 0
    assert "was edited" not in capsys.readouterr().err
