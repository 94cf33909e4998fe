"""Proves that a fault in an evaluation costs its own numbers only, and that it goes on."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tinydiffusion
from tinydiffusion import registry
from tinydiffusion.build import build_dataset
from tinydiffusion.cli.main import main
from tinydiffusion.evaluation.measurement import Measurement, measure
from tinydiffusion.evaluation.rows import print_table, report_row, write_report
from tinydiffusion.evaluation.sources import DatasetPictures, eval_batch
from tinydiffusion.model_folder.layout import INDEX
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.protocols import Score
from tinydiffusion.sampling.folder import save_samples

ROOT = Path(tinydiffusion.__file__).parents[1]
FLAGS = ["--metrics", "pixel_fd", "--num-images", "6", "--steps", "1"]


@pytest.fixture
def evaluate(tmp_path):
    def evaluate(target, *flags: str, code: int = 0) -> dict:
        out = tmp_path / "report.json"
        assert main(["evaluate", str(target), *flags, "--out", str(out)]) == code
        return json.loads(out.read_text(), parse_constant=pytest.fail)

    return evaluate


def values(report: dict) -> dict[str, float]:
    return {row["name"]: row["value"] for row in report["results"]}


def write_scenes(folder: Path, sizes: list[int]) -> Path:
    scenes = [build_dataset({"name": "scenes", "size": size, "num_scenes": 32}) for size in sizes]
    examples = [scene[i] for i, scene in enumerate(scenes)]
    rows = [{"text": example["caption"][0], "sampler": "none"} for example in examples]
    save_samples(folder, enumerate(e["image"] for e in examples), dict(enumerate(rows)))
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), [16] * 12)


# ---- interrupted -----------------------------------------------------------------------------


def test_kept_samples_give_the_numbers_of_an_unbroken_evaluation(
    model, evaluate, tmp_path, monkeypatch, capsys
):
    plain = values(evaluate(model, *FLAGS))
    keep = [*FLAGS, "--samples", str(tmp_path / "kept"), "--batch-size", "2"]
    generate, calls = TextToImage.generate, []

    def interrupted(self, prompts, **options):
        calls.append(len(prompts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(self, prompts, **options)

    monkeypatch.setattr(TextToImage, "generate", interrupted)
    assert main(["evaluate", model, *keep]) == 130
    assert values(evaluate(model, *keep)) == plain
    assert calls == [2, 2, 2, 2]
    assert "4 of 6 pictures are there already" in capsys.readouterr().err
    assert values(evaluate(model, *keep)) == plain
    assert calls == [2, 2, 2, 2]
    samples = evaluate(tmp_path / "kept", "--metrics", "scene_accuracy", "--num-images", "6")
    assert {row["n"] for row in samples["results"] if row["name"] == "scene_accuracy"} == {6}


def test_a_folder_of_samples_takes_no_samples(scenes, mistake, tmp_path):
    line = mistake("evaluate", str(scenes), *FLAGS[:4], "--samples", str(tmp_path))
    assert line == f"{scenes} holds samples, not a model: leave out samples"


# ---- evaluators that fail --------------------------------------------------------------------


class Evaluator:
    """Counts pictures, and fails where it is told to."""

    needs = ("generated",)

    def __init__(self, place: str = "", what=None):
        self.place, self.what, self.seen = place, what or ValueError("boom"), 0

    def fail(self, place):
        if place == self.place and isinstance(self.what, BaseException):
            raise self.what

    def update(self, batch):
        self.fail("update")
        self.seen += len(batch["id"])

    def state(self):
        return {}

    def load_state(self, state):
        pass

    def compute(self):
        self.fail("compute")
        values = {"value": 1.0, "ci95": None, "details": {}}
        if self.place in values:
            values[self.place] = self.what
        return [Score("seen", n=self.seen, **values)]

    def provenance(self):
        self.fail("provenance")
        return {"a": 1}


def rows_of(*evaluators: Evaluator) -> list[dict]:
    measurement = Measurement({f"e{i}": e for i, e in enumerate(evaluators)})
    images = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    for ids in ([0, 1, 2], [3, 4, 5]):
        measurement.update(eval_batch("generated", ids, images, ["a"] * 3))
    return measurement.rows()


@pytest.mark.parametrize("place", ["update", "compute", "provenance"])
@pytest.mark.parametrize(
    "error", [ValueError("boom"), RuntimeError("b\no\nom"), KeyError(1), MemoryError(), OSError(5)]
)
def test_an_evaluator_that_raises_costs_itself_only(place, error):
    first, failed, last = rows_of(Evaluator(), Evaluator(place, error), Evaluator())
    assert (first["value"], last["value"]) == (1.0, 1.0)
    assert (first["n"], last["n"]) == (6, 6)
    assert failed.keys() == {*first.keys(), "error"}
    assert (failed["name"], failed["value"], failed["n"]) == ("e1", None, 0)
    assert failed["error"].startswith(type(error).__name__)
    assert failed["error"].endswith(")")
    assert "(test_evaluate_faults.py:" in failed["error"]
    assert "\n" not in failed["error"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_what_stops_the_program_is_no_fault_of_an_evaluator(error):
    with pytest.raises(type(error)):
        rows_of(Evaluator("update", error))


def test_no_picture_is_read_for_evaluators_that_have_all_failed(monkeypatch):
    dataset, read = build_dataset({"name": "scenes", "size": 16, "num_scenes": 50}), []
    draw = type(dataset).__getitem__
    monkeypatch.setattr(
        type(dataset), "__getitem__", lambda self, i: read.append(i) or draw(self, i)
    )
    measurement = Measurement({"e": Evaluator("update")})
    measure(measurement, DatasetPictures("generated", dataset), batch_size=5)
    assert len(read) <= 10


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_an_error(value):
    row, other = rows_of(Evaluator("value", value), Evaluator())
    assert (row["value"], row["n"], row["error"]) == (None, 6, f"the value is {value}")
    assert "error" not in other


def test_other_numbers_that_are_none_are_a_warning():
    (row,) = rows_of(Evaluator("ci95", (0.0, math.nan)))
    assert (row["value"], row["ci95"]) == (1.0, None)
    assert row["warnings"] == ["seen: ci95 is not finite"]
    (row,) = rows_of(Evaluator("details", {"a": [1.0, math.inf], "b": {"c": math.nan}, "d": "x"}))
    assert row["details"] == {"a": [1.0, None], "b": {"c": None}, "d": "x"}
    assert row["warnings"] == ["seen: details is not finite"]


def test_details_that_are_no_json_are_an_error():
    (row,) = rows_of(Evaluator("details", {"a": object()}))
    assert row["error"].startswith("TypeError: Object of type object is not JSON serializable")


def test_a_failure_is_reported_after_the_table_and_the_others_are_kept(
    scenes, evaluate, capsys, monkeypatch
):
    pixel_fd = registry.load("evaluator", "pixel_fd")
    monkeypatch.setattr(pixel_fd, "compute", lambda self: 1 / 0)
    flags = ["--metrics", "pixel_fd", "scene_accuracy", "--data", str(scenes)]
    report = evaluate(scenes, *flags, code=1)
    found = values(report)
    assert found.pop("pixel_fd") is None
    assert found.pop("scene_accuracy") == 1.0
    (row,) = (row for row in report["results"] if row["evaluator"] == "pixel_fd")
    assert row["error"].startswith("ZeroDivisionError: division by zero (test_evaluate_faults.py:")
    printed = capsys.readouterr().out
    assert "failed" in printed
    assert printed.splitlines()[-1].startswith("error: pixel_fd: ZeroDivisionError")


HANGING = """
import time

class Sleeper:
    needs = ("generated",)

    def update(self, batch):
        time.sleep(60)
"""


def test_an_evaluator_that_hangs_ends_the_command_and_says_where(scenes, tmp_path):
    (tmp_path / "my_sleeper.py").write_text(HANGING)
    flags = ["--metrics", "my_sleeper:Sleeper", "--hang-minutes", "0.01"]
    ended = subprocess.run(
        [sys.executable, "-m", "tinydiffusion.cli.main", "evaluate", scenes, *flags],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{ROOT}:."}, timeout=100,
        capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 5
    assert "nothing has moved" in ended.stderr
    assert "my_sleeper.py" in ended.stderr


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "x"])
def test_a_time_limit_is_a_positive_number(scenes, mistake, minutes):
    line = mistake("evaluate", str(scenes), *FLAGS[:2], "--hang-minutes", minutes)
    assert line.startswith("argument --hang-minutes: ")


# ---- the report ------------------------------------------------------------------------------


def test_a_report_is_json_whatever_is_in_it(tmp_path):
    file = tmp_path / "new" / "report.json"
    context = {"learning_rate": math.nan, "prompts": ("\ud800", "\u2028")}
    write_report(file, [report_row(Score("a", math.inf, 1), "e", {"b": math.nan})], context)
    report = json.loads(file.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert report["context"]["learning_rate"] is None
    assert report["results"][0]["provenance"] == {"b": None}
    print_table(report["results"], "title")


def test_a_report_is_never_half_there(tmp_path, monkeypatch):
    file = tmp_path / "report.json"
    write_report(file, [], {"run": 1})
    before = file.read_bytes()

    def full(path, data):
        path.write_bytes(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tinydiffusion.runtime.durable.write_synced", full)
    with pytest.raises(OSError, match="No space"):
        write_report(file, [], {"run": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert file.read_bytes() == before


# ---- pictures that cannot be compared --------------------------------------------------------


def test_few_samples_are_marked(scenes, evaluate):
    report = evaluate(scenes, "--metrics", "scene_accuracy", "--num-images", "20")
    assert report["context"]["sources"]["generated"]["n"] == 12
    for row in report["results"]:
        assert f"{scenes} holds 12 samples, 20 were asked for" in row["warnings"]
    report = evaluate(scenes, "--metrics", "scene_accuracy", "--num-images", "12")
    assert all(row["warnings"] == [] for row in report["results"])


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_sample_that_is_not_there_is_named_and_counted(tmp_path, evaluate, capsys, damage):
    folder = write_scenes(tmp_path / "damaged", [16] * 6)
    file = folder / "00002.png"
    data = file.read_bytes()
    file.unlink() if damage == "missing" else file.write_bytes(data[:-40])
    report = evaluate(folder, "--metrics", "scene_accuracy", code=1)
    assert report["results"][0]["n"] == 5
    assert "00002.png" in capsys.readouterr().out


# ---- what a stranger's config asks for -------------------------------------------------------


@pytest.fixture
def other_reference(model, tmp_path):
    """The model with another data set in its config."""

    def other_reference(**dataset) -> str:
        folder = shutil.copytree(model, tmp_path / "stranger")
        index = json.loads((folder / INDEX).read_text())
        index["tinydiffusion_config"]["dataset"] = dataset
        index["tinydiffusion_config"]["validation"] = None
        (folder / INDEX).write_text(json.dumps(index))
        return str(folder)

    return other_reference


def test_what_the_config_asks_to_read_is_said(other_reference, scenes, evaluate, capsys):
    folder = other_reference(name="folder", path=str(scenes), size=16)
    evaluate(folder, *FLAGS, "--data", "train")
    said = "reference, as the model's config asks for: {'name': 'folder', 'path': "
    assert f"{said}'{scenes}', 'size': 16}}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"name": "scenes", "size": 10**6}, "pictures of size 1000000, the model [16, 16]"),
        ({"name": "scenes", "size": 16, "num_scenes": 10**12}, "num_scenes"),
        ({"name": "scenes"}, "those of the reference 32x32"),
        ({"name": "folder", "path": "/nowhere", "size": 16}, "no such folder: /nowhere"),
        ({"name": "nothing"}, "unknown dataset 'nothing'"),
    ],
)
def test_a_config_that_asks_for_what_cannot_be_is_refused(
    other_reference, capsys, dataset, message
):
    assert main(["evaluate", other_reference(**dataset), *FLAGS, "--data", "train"]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
