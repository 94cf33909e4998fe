"""Proves that `evaluate` measures a model or samples alike, and that its report says how."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from tinydiffusion import registry
from tinydiffusion.build import build_dataset
from tinydiffusion.cli.main import main
from tinydiffusion.evaluation.measurement import Measurement, measure
from tinydiffusion.evaluation.sources import DatasetPictures, eval_batch
from tinydiffusion.protocols import SOURCES, Score
from tinydiffusion.sampling.folder import save_samples
from tinydiffusion.survey import evaluation_prompts

ROW = {
    "name", "value", "n", "ci95", "higher_is_better", "details", "warnings", "evaluator",
    "provenance",
}  # fmt: skip


@pytest.fixture
def evaluate(tmp_path):
    """Evaluates and returns the report."""

    def evaluate(target, *arguments: str) -> dict:
        out = tmp_path / "new" / "report.json"
        assert main(["evaluate", str(target), *arguments, "--out", str(out)]) == 0
        return json.loads(out.read_text())

    return evaluate


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """Sixteen true scenes as a folder of samples: what a perfect model would make."""
    dataset = build_dataset({"name": "scenes", "num_scenes": 16, "split": "held_out"})
    examples = [dataset[i] for i in range(16)]
    folder = tmp_path_factory.mktemp("scenes")
    rows = [{"text": example["caption"][0]} for example in examples]
    save_samples(folder, enumerate(e["image"] for e in examples), dict(enumerate(rows)))
    return folder


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("noise")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 3, 32, 32), generator=generator).to(torch.uint8)
    row = {"text": "a red circle on a white background"}
    save_samples(folder, enumerate(images), dict.fromkeys(range(16), row))
    return folder


def values(report: dict) -> dict[str, float]:
    return {row["name"]: row["value"] for row in report["results"]}


# ---- a model ---------------------------------------------------------------------------------


def test_a_model_is_measured_against_its_own_validation_set(model, evaluate, finished, capsys):
    flags = ["--metrics", "pixel_fd", "--num-images", "8", "--precision", "float32"]
    report = evaluate(model, *flags)
    (row,) = report["results"]
    assert row.keys() >= ROW
    assert (row["name"], row["n"], row["evaluator"]) == ("pixel_fd", 8, "pixel_fd")
    context = report["context"]
    weights = finished / "model/network/diffusion_pytorch_model.safetensors"
    assert context["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert context["kind"] == "model"
    assert context["target"] == model
    assert context["sampling"]["steps"] == 2
    assert "pixel_fd" in capsys.readouterr().out
    # The same number as at the end of training.
    end = json.loads((finished / "report.json").read_text())
    assert values(report)["pixel_fd"] == values(end)["pixel_fd"]


def test_the_batch_size_changes_no_number(model, evaluate):
    flags = ["--metrics", "pixel_fd", "--num-images", "6"]
    reports = [evaluate(model, *flags, "--batch-size", size) for size in ("1", "6")]
    assert values(reports[0]) == values(reports[1])


def test_sampling_flags_and_seed_change_the_pictures(model, evaluate):
    flags = ["--metrics", "pixel_fd", "--num-images", "6"]
    plain = evaluate(model, *flags)
    other = evaluate(model, *flags, "--steps", "4", "--guidance-scale", "1")
    assert values(other) != values(plain)
    assert other["context"]["sampling"] == {
        **plain["context"]["sampling"], "steps": 4, "guidance_scale": 1.0
    }  # fmt: skip
    assert values(evaluate(model, *flags, "--seed", "9")) != values(plain)


def test_a_guidance_interval_is_told_and_its_state_goes_on(model, evaluate, tmp_path):
    flags = ["--metrics", "pixel_fd", "--num-images", "6"]
    state = ["--guidance-interval", "0.5", "3", "--state", str(tmp_path / "state")]
    within = evaluate(model, *flags, *state)
    assert within["context"]["sampling"]["guidance_interval"] == [0.5, 3.0]
    plain = evaluate(model, *flags)
    assert plain["context"]["sampling"]["guidance_interval"] is None
    assert values(evaluate(model, *flags, *state)) == values(within) != values(plain)


def test_the_reference_may_be_the_training_set_or_a_folder(model, evaluate, scenes):
    flags = ["--metrics", "pixel_fd", "--num-images", "6"]
    numbers = [
        values(evaluate(model, *flags, "--data", data))["pixel_fd"]
        for data in ("validation", "train", str(scenes))
    ]
    assert len(set(numbers)) == 3


# ---- samples ---------------------------------------------------------------------------------


def test_true_scenes_are_all_right_and_noise_is_all_wrong(evaluate, scenes, noise):
    right = evaluate(scenes, "--metrics", "scene_accuracy")
    assert right["context"]["kind"] == "samples"
    rows = {row["name"]: row for row in right["results"]}
    for name, n in (("", 16), ("/one_object", 8), ("/two_objects", 8)):
        row = rows[f"scene_accuracy{name}"]
        assert row.keys() >= ROW
        assert (row["value"], row["n"]) == (1.0, n)
        low, high = row["ci95"]
        assert 0 < low < 1 == high
    wrong = evaluate(noise, "--metrics", "scene_accuracy")
    assert values(wrong)["scene_accuracy"] == 0


def test_samples_equal_to_the_reference_are_at_distance_zero(evaluate, scenes, noise):
    flags = ["--metrics", "pixel_fd", "--data", str(scenes)]
    assert values(evaluate(scenes, *flags))["pixel_fd"] == pytest.approx(0, abs=1e-4)
    assert values(evaluate(noise, *flags))["pixel_fd"] > 1


def test_samples_of_a_model_score_as_the_model(model, evaluate, tmp_path):
    """What sample.py writes is read back without loss."""
    folder = build_dataset({"name": "scenes", "size": 16, "num_scenes": 8, "split": "held_out"})
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(evaluation_prompts(folder, 8)))
    reference = tmp_path / "reference"
    examples = [folder[i] for i in range(8)]
    rows = [{"text": example["caption"]} for example in examples]
    save_samples(reference, enumerate(e["image"] for e in examples), dict(enumerate(rows)))
    out = str(tmp_path / "samples")
    assert main(["sample", model, "--prompts", str(prompts), "--out", out]) == 0
    flags = ["--metrics", "pixel_fd", "--num-images", "8"]
    from_samples = evaluate(out, *flags, "--data", str(reference))
    assert values(from_samples) == pytest.approx(values(evaluate(model, *flags)))


def test_metric_options_are_flags(evaluate, scenes, noise):
    flags = ["--metrics", "pixel_fd", "--data", str(scenes)]
    coarse = evaluate(noise, *flags, "--pixel_fd.size", "4")
    assert coarse["results"][0]["provenance"] != evaluate(noise, *flags)["results"][0]["provenance"]
    assert values(coarse) != values(evaluate(noise, *flags, "--pixel_fd.size=2"))


@pytest.mark.parametrize("metrics", [["pixel_fd,scene_accuracy"], ["pixel_fd", "scene_accuracy"]])
def test_metrics_may_be_separated_by_spaces_or_commas(evaluate, scenes, metrics):
    report = evaluate(scenes, "--metrics", *metrics, "--data", str(scenes))
    assert {row["evaluator"] for row in report["results"]} == {"pixel_fd", "scene_accuracy"}


def test_num_images_limits_the_samples(evaluate, scenes):
    report = evaluate(scenes, "--metrics", "scene_accuracy", "--num-images", "6")
    assert {row["name"]: row["n"] for row in report["results"]}["scene_accuracy"] == 6


def test_without_out_the_report_is_printed_alone(scenes, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(scenes), "--metrics", "scene_accuracy"]) == 0
    assert "scene_accuracy/one_object" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


# ---- mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "pixel_fs"], "unknown evaluator 'pixel_fs' (did you mean 'pixel_fd'?)"),
        (["--metrics", "pixel_fd", "nope"], "unknown evaluator 'nope'; there are "),
        (["--metrics", "pixel_fd", "--pixel_fd.sise", "4"], "has no option 'sise'"),
        (["--metrics", "pixel_fd", "--pixel_fd.size", "four"], "must be int, got 'four'"),
        (["--metrics", "pixel_fd", "--pixel_fd.size", "0"], "size must be in [1, 32], got 0"),
        (["--metrics", "pixel_fd", "--fid.weights", "x"], "options for 'fid', which is not among"),
        (["--metrics", "pixel_fd", "--num-images", "0"], "must be at least 1, got 0"),
        (["--metrics", "pixel_fd", "--batch-size", "0"], "must be at least 1, got 0"),
        (["--metrics", "pixel_fd", "--data", "/nowhere"], "no such folder: /nowhere"),
        (["--metrics", "pixel_fd", "--metric", "fid"], "unrecognized arguments: --metric"),
        (["--metrics"], "argument --metrics: expected at least one argument"),
        ([], "the following arguments are required: --metrics"),
    ],
)
@pytest.mark.parametrize("target", ["model", "scenes"])
def test_a_mistake_is_one_line(request, target, mistake, arguments, message):
    assert message in mistake("evaluate", str(request.getfixturevalue(target)), *arguments)


def test_an_unknown_sampler_is_named(model, mistake):
    line = mistake("evaluate", model, "--metrics", "pixel_fd", "--sampler", "eulr")
    assert line.startswith("unknown sampler 'eulr' (did you mean 'euler'?)")


def test_samples_cannot_be_sampled_again(scenes, mistake):
    line = mistake("evaluate", str(scenes), "--metrics", "scene_accuracy", "--steps", "3")
    assert line == f"{scenes} holds samples, not a model: leave out steps"


def test_a_metric_that_compares_needs_pictures_to_compare_with(scenes, mistake):
    line = mistake("evaluate", str(scenes), "--metrics", "pixel_fd")
    assert line == "pixel_fd compares with real pictures; name them with --data"


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_target_that_is_neither_is_named(tmp_path, mistake, name):
    (tmp_path / "empty").mkdir()
    line = mistake("evaluate", str(tmp_path / name), "--metrics", "scene_accuracy")
    assert str(tmp_path / name) in line


# ---- parts -----------------------------------------------------------------------------------


class Counter:
    """An evaluator that counts what it sees."""

    def __init__(self, *needs):
        self.needs = needs
        self.seen = {"generated": [], "reference": []}

    def update(self, batch):
        assert len(batch["id"]) == len(batch["image"]) == len(batch["prompt"])
        self.seen[batch["source"]] += batch["id"].tolist()

    def state(self):
        return {}

    def load_state(self, state):
        pass

    def compute(self):
        return [Score("seen", 0.0, len(self.seen["generated"]), (0.0, 1.0))]

    def provenance(self):
        return {"a": 1}


class Made:
    """Five black pictures."""

    source, block, prompts = "generated", 1, list("abcde")
    notes, unreadable = {}, {}

    def __len__(self):
        return 5

    def read(self, ids):
        images = torch.zeros(len(ids), 3, 16, 16, dtype=torch.uint8)
        return eval_batch("generated", ids, images, [self.prompts[i] for i in ids])

    def about(self):
        return {}

    def content_key(self, ids):
        return None

    def remarks(self):
        return []


def test_evaluators_see_the_sources_that_they_need_numbered_through():
    dataset = build_dataset({"name": "scenes", "size": 16, "num_scenes": 70})
    evaluators = {"all": Counter("generated", "reference"), "one": Counter("generated")}
    measurement = Measurement(evaluators)
    for pictures in (Made(), DatasetPictures("reference", dataset)):
        measure(measurement, pictures, 3)
    everything = {"generated": list(range(5)), "reference": list(range(70))}
    assert evaluators["all"].seen == everything
    assert evaluators["one"].seen == {**everything, "reference": []}
    rows = measurement.rows(["beside all"])
    assert [row["evaluator"] for row in rows] == ["all", "one"]
    assert rows[0]["ci95"] == [0.0, 1.0]
    assert rows[0]["provenance"]["a"] == 1
    assert rows[0]["provenance"]["quantise"].startswith("uint8")
    assert rows[1]["warnings"] == ["beside all"]


def test_pictures_that_nobody_needs_are_not_made(monkeypatch):
    monkeypatch.setattr(Made, "read", lambda self, ids: pytest.fail("a picture was made"))
    measurement = Measurement({})
    measure(measurement, Made(), 3)
    assert measurement.rows() == []


@pytest.mark.parametrize(("count", "wanted"), [(10, 4), (10, 10), (3, 7)])
def test_prompts_are_spread_over_the_set(count, wanted):
    """... the same ones each time; every example before any is used twice."""
    dataset = build_dataset({"name": "scenes", "size": 16, "num_scenes": count})
    prompts = evaluation_prompts(dataset, wanted)
    captions = [dataset[i]["caption"][0] for i in range(count)]
    assert len(prompts) == wanted
    assert prompts == evaluation_prompts(dataset, wanted)
    assert set(prompts) <= set(captions)
    if wanted >= count:
        assert sorted(prompts[:count]) == sorted(captions)
        assert prompts[count:] == prompts[: wanted - count]


def test_every_registered_evaluator_names_its_sources():
    for name in registry.names("evaluator"):
        assert set(registry.load("evaluator", name).needs) <= {*SOURCES, "prompts"}
