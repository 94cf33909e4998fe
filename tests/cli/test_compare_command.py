"""Proves that a comparison tells noise from differences, and refuses what does not compare."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tinydiffusion.cli.main import main
from tinydiffusion.evaluation import compare as command
from tinydiffusion.evaluation.compare import bootstrap_means, compare_reports
from tinydiffusion.evaluation.rows import SCHEMA
from tinydiffusion.evaluation.sources import DatasetPictures

N = 200


def make(shift=0.0, seed=0, prompts=None) -> dict:
    """A report with one metric per picture, one with an interval, one without."""
    common = np.random.default_rng(0).normal(size=N)  # hard and easy prompts
    own = 0.1 * np.random.default_rng(seed + 1).normal(size=N)
    values = common + own + shift

    def row(name, value, **more):
        return {
            "name": name, "value": value, "n": N, "ci95": None, "higher_is_better": True,
            "details": {}, "warnings": [], "per_picture": {}, "evaluator": name,
            "provenance": {"extractor": "x", "weights_sha256": "1", "resize": "r",
                           "needs": ["generated", "reference"],
                           "packages": {"torch": "2"}}, **more,
        }  # fmt: skip

    return {
        "schema": SCHEMA,
        "context": {
            "prompts": prompts, "prompts_sha256": "p", "options": {},
            "sources": {"generated": {"n": N}, "reference": {"n": N, "sha256": "r"}},
        },
        "results": [
            row("paired", values.mean(), per_picture={str(i): v for i, v in enumerate(values)}),
            row("apart", 5 + shift, ci95=[4.8 + shift, 5.2 + shift], higher_is_better=False),
            row("bare", 1.0),
        ],
    }  # fmt: skip


def verdicts(a, b) -> dict:
    return {row["name"]: row.get("verdict") for row in compare_reports(a, b)}


def test_a_paired_difference_is_seen_where_separate_intervals_overlap():
    a, b = make(), make(shift=0.06, seed=1)
    found = {row["name"]: row for row in compare_reports(a, b)}
    assert found["paired"]["verdict"] == "B is better"
    values = [np.array(list(r["results"][0]["per_picture"].values())) for r in (a, b)]
    alone = 1.96 * values[0].std() / N**0.5
    assert found["paired"]["difference"] < alone  # one report's interval hides it
    difference = values[1] - values[0]
    half = 1.96 * difference.std(ddof=1) / N**0.5
    expected = [difference.mean() - half, difference.mean() + half]
    assert found["paired"]["ci95"] == pytest.approx(expected, abs=0.1 * half)


def test_equal_models_differ_by_noise_only():
    intervals = [compare_reports(make(), make(seed=s))[0] for s in range(1, 41)]
    wrong = sum(row["verdict"] != "noise" for row in intervals)
    assert wrong <= 6  # 2 of 40 expected


def test_intervals_of_their_own_are_taken_as_independent():
    assert verdicts(make(), make(shift=0.2))["apart"] == "noise"  # hypot(.2, .2) = .28
    assert verdicts(make(), make(shift=0.3))["apart"] == "A is better"
    assert verdicts(make(), make())["bare"] == "unknown"


def test_prompts_are_resampled_with_all_their_pictures():
    """Four pictures of one prompt that move together are one observation, not four."""
    shifts = np.repeat(np.random.default_rng(3).normal(size=N // 4), 4)

    def width(prompts):
        a, b = make(prompts=prompts), make(prompts=prompts)
        pictures = b["results"][0]["per_picture"]
        b["results"][0]["per_picture"] = {k: v + shifts[int(k)] for k, v in pictures.items()}
        low, high = compare_reports(a, b)[0]["ci95"]
        return high - low

    together = width([f"prompt {i // 4}" for i in range(N)])
    assert together == pytest.approx(2 * width([f"prompt {i}" for i in range(N)]), rel=0.1)


def test_the_bootstrap_is_seeded_and_weighs_groups_by_size():
    totals, counts = np.array([1.0, 6.0]), np.array([1.0, 3.0])
    means = bootstrap_means(totals, counts, 0)
    assert set(np.round(means, 6)) == {1.0, 1.75, 2.0}
    assert len(means) == 10_000
    np.testing.assert_array_equal(means, bootstrap_means(totals, counts, 0))
    assert not np.array_equal(means, bootstrap_means(totals, counts, 1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: r["results"][0].update(n=100), "different n: 200 and 100"),
        (lambda r: r["results"][0]["provenance"].update(weights_sha256="2"), "weights_sha256"),
        (lambda r: r["results"][0]["provenance"].update(resize="other"), "resize: r and other"),
        (lambda r: r["results"][0]["provenance"].update(extractor="y"), "extractor: x and y"),
        (lambda r: r["context"].update(prompts_sha256="q"), "different prompts_sha256: p and q"),
        (lambda r: r["context"]["sources"]["generated"].update(resize="N"), "resize of the"),
        (lambda r: r["results"][0].update(value=None, skipped="no weights"), "B has no value (no"),
        (lambda r: r["results"].pop(0), "only A has it"),
        (lambda r: r["context"].update(options={"paired": {"k": 1}}), "options: {} and {'k': 1}"),
        (lambda r: r["context"]["sources"]["reference"].update(sha256="s"), "reference: r and s"),
        (lambda r: r["context"].pop("sources"), "B does not say its resize of"),
        (lambda r: r["context"].pop("options"), "B does not say its options"),
        (lambda r: r["context"].pop("prompts_sha256"), "B does not say its prompts_sha256"),
        (lambda r: r["results"][0]["provenance"].pop("needs"), "B does not say its sources"),
        (lambda r: r["results"][0].update(evaluator="other"), "different evaluator: paired and"),
    ],
)
def test_what_does_not_compare_is_refused_with_the_reason(change, reason):
    a, b = make(), make()
    b = copy.deepcopy(b)
    change(b)
    row = next(row for row in compare_reports(a, b) if row["name"] == "paired")
    assert reason in row["refused"]
    assert "difference" not in row


@pytest.mark.parametrize("key", ["sources", "options", "prompts_sha256"])
def test_what_neither_report_says_is_no_agreement(key):
    a, b = make(), make()
    for report in (a, b):
        del report["context"][key]
        report["results"][2]["provenance"]["needs"] = ["generated"]
    rows = compare_reports(a, b)
    assert all(row["refused"].startswith("neither report says its ") for row in rows)


def test_newer_packages_and_moved_weights_compare():
    b = make(shift=1.0)
    b["results"][0]["provenance"]["packages"] = {"torch": "3"}
    b["context"]["options"] = {"paired": {"weights": "elsewhere.pth"}, "other": {"k": 1}}
    assert verdicts(make(), b)["paired"] == "B is better"


def test_the_command_prints_what_is_larger_than_noise(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "NUM_RESAMPLES", 1000)
    for name, report in (("a", make()), ("b", make(shift=0.5))):
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
    files = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    assert main(["compare", *files, "--json", str(tmp_path / "c.json")]) == 0
    assert "larger than noise: paired, apart" in capsys.readouterr().out
    found = json.loads((tmp_path / "c.json").read_text())
    assert [row["verdict"] for row in found["results"]] == ["B is better", "A is better", "unknown"]


def test_files_that_do_not_compare_are_one_line(tmp_path, mistake):
    a, b, odd = (tmp_path / f"{name}.json" for name in ("a", "b", "odd"))
    a.write_text(json.dumps(make()))
    other = make()
    for row in other["results"]:
        row["n"] = 5
    b.write_text(json.dumps(other))
    odd.write_text("[]")
    assert "do not compare: paired: different n: 200 and 5" in mistake("compare", str(a), str(b))
    assert mistake("compare", str(a), str(odd)).startswith(f"{odd} is no report: its schema")
    odd.write_text(json.dumps({**make(), "results": [{"name": "fid"}]}))
    assert "row 1 of its results lacks value, n, ci95" in mistake("compare", str(a), str(odd))
    odd.write_text(json.dumps({**make(), "context": None}))
    assert "no report: its context or its results" in mistake("compare", str(a), str(odd))
    odd.write_text("{")
    assert "not valid JSON" in mistake("compare", str(odd), str(a))
    assert "cannot read the report" in mistake("compare", str(a), str(tmp_path / "nowhere"))


# ---- reports of training ---------------------------------------------------------------------


@pytest.fixture
def train_report(finished, tiny, tmp_path):
    """The report that the finished run's own command writes anew, with other settings."""

    def train_report(name, *flags):
        run = shutil.copytree(finished, tmp_path / name)
        (run / "report.json").unlink()
        assert main(["train", "--config", tiny, "--run-dir", str(run), *flags]) == 0
        return str(run / "report.json")

    return train_report


def validation(folder, colour) -> list[str]:
    """Flags for eight captioned pictures of one colour."""
    folder.mkdir()
    for i in range(8):
        Image.new("RGB", (16, 16), colour).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a red circle {i}")
    return ["--validation", f"{{name: folder, path: '{folder}', size: 16}}"]


def test_a_training_report_says_what_an_evaluation_says(train_report, tmp_path):
    run = json.loads(Path(train_report("a")).read_text())
    model = str(tmp_path / "a/model")
    flags = ["--metrics", "pixel_fd", "--num-images", "8", "--out", str(tmp_path / "b.json")]
    assert main(["evaluate", model, *flags]) == 0
    evaluation = json.loads((tmp_path / "b.json").read_text())
    of_run = {"run", "config", "pictures_seen", "training_seconds", "total_seconds"}
    assert run["context"].keys() == evaluation["context"].keys() | of_run
    same = ("kind", "target", "model_sha256", "weights_sha256", "sampling", "seed", "sources",
            "options", "metrics", "prompts", "prompts_sha256")  # fmt: skip
    for key in same:
        assert run["context"][key] == evaluation["context"][key]
    assert run["results"] == evaluation["results"]  # no speed: nothing was trained
    assert run["pictures"] == evaluation["pictures"]
    assert main(["compare", str(tmp_path / "a/report.json"), str(tmp_path / "b.json")]) == 0


def test_training_reports_of_one_measurement_compare(train_report):
    assert main(["compare", train_report("a"), train_report("b", "--evaluation.every", "32")]) == 0


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--evaluation.num_images", "6"], "pixel_fd: different n: 8 and 6"),
        (["--evaluation.reference", "train"], "pixel_fd: different prompts_sha256"),
        (["--evaluation.options", "{pixel_fd: {size: 4}}"], "pixel_fd: different options"),
    ],
)
def test_training_reports_of_other_conditions_are_refused(train_report, mistake, flags, reason):
    one, other = train_report("a"), train_report("b", *flags)
    assert reason in mistake("compare", one, other)


def test_training_reports_over_other_references_are_refused(train_report, tmp_path, mistake):
    """... of the same captions, number and shape."""
    red, blue = (validation(tmp_path / colour, colour) for colour in ("red", "blue"))
    one, other = train_report("a", *red), train_report("b", *blue)
    assert "pixel_fd: different reference: " in mistake("compare", one, other)


def test_a_data_set_is_told_by_its_content():
    class Toy:
        def __init__(self, light, caption="a", ids="xyz"):
            self.light, self.caption, self.ids = light, caption, ids

        def __len__(self):
            return len(self.ids)

        def __getitem__(self, index):
            image = torch.full((3, 4, 4), self.light, dtype=torch.uint8)
            return {"image": image, "caption": self.caption, "id": self.ids[index]}

    def sha256(*arguments, limit=None, **more):
        return DatasetPictures("reference", Toy(*arguments, **more), limit).about()["sha256"]

    assert sha256(1) == sha256(1)
    others = [sha256(2), sha256(1, "b"), sha256(1, ids="xy"), sha256(1, ids="zyx"),
              sha256(1, limit=2)]  # fmt: skip
    assert sha256(1) not in others
    assert sha256(1, limit=2) == sha256(1, ids="xy")
