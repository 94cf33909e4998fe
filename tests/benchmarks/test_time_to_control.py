"""benchmarks/time_to_control.py: both are trained and measured, and what is read off curves."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from itertools import count, pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import _contenders  # noqa: E402
import _rivals  # noqa: E402
import time_to_control as benchmark  # noqa: E402

from tinydiffusion.config import ConfigError  # noqa: E402

TINY = [
    "--dataset.num_scenes", "16", "--validation.num_scenes", "4", "--training.batch_size", "4",
    "--network.channels", "[32]", "--network.attention_levels", "[]", "--sampling.steps", "2",
    "--dataset.size", "16", "--training.precision", "float32",
]  # fmt: skip
TASK = {
    "seed": 0, "config": str(ROOT / "configs/smoke.yaml"), "overrides": TINY, "minutes": 0.01,
    "every": 0.2, "num_images": 2, "device": "cpu", "baseline_precision": "float32",
    "baseline_gflop": None, "baseline_batch": 3,
}  # fmt: skip


def curve(*accuracies, every=10.0):
    return [
        {"seconds": every * (i + 1), "pictures": i, "accuracy": a, "ci95": [0, 1], "n": 8}
        for i, a in enumerate(accuracies)
    ]


def result(ours, theirs, asked=("a", "b")):
    runs = {
        name: [{"seed": seed, "curve": c, "pictures_per_s": 2.0} for seed, c in enumerate(curves)]
        for name, curves in (("ours", ours), ("baseline", theirs))
    }
    options = Namespace(config="c.yaml", num_images=8, seeds=[0])
    each = dict(zip(runs, ({"config": a, "minutes": 1.0} for a in asked), strict=True))
    return json.loads(json.dumps(benchmark.report(options, {}, each, runs)))


@pytest.mark.parametrize("name", benchmark.NAMES)
def test_a_contender_is_trained_and_measured(name, monkeypatch):
    rival = _rivals.diffusers_unet(64, [16, 16], size=16, heads=[1, 1], groups=8)
    monkeypatch.setattr(_contenders, "rival_of", lambda *_: (rival, (16, 16)))
    ticks = count(step=0.02)  # a clock that no other work on the machine can disturb
    monkeypatch.setattr(_contenders.time, "monotonic", lambda: next(ticks))
    run = _contenders.contend(_contenders.Task(name=name, **TASK))
    assert run.keys() == {"seed", "curve", "pictures_per_s", "about"}
    assert run["about"].keys() >= {"forward_gflop", "parameters", "bfloat16"}
    assert run["about"]["steps"] == 2
    assert len(run["curve"]) >= 2
    for point in run["curve"]:
        assert point.keys() == {"seconds", "pictures", "accuracy", "ci95", "n"}
        assert point["n"] == 2
    for before, after in pairwise(run["curve"]):
        assert before["seconds"] < after["seconds"]
        assert before["pictures"] < after["pictures"]
    assert run["curve"][-1]["seconds"] > 0.8 * 60 * TASK["minutes"]


def test_only_scenes_have_held_out_combinations():
    task = {**TASK, "overrides": ["--validation.split", "train"]}
    with pytest.raises(ConfigError, match="held_out"):
        _contenders.Task(name="ours", **task).load()


def test_the_baseline_has_a_batch_of_its_own():
    ours, theirs = (_contenders.Task(name=name, **TASK).load() for name in benchmark.NAMES)
    assert (ours.training.batch_size, theirs.training.batch_size) == (4, 3)


def test_snapshots_come_at_their_times(monkeypatch, tmp_path):
    now = 100.0
    monkeypatch.setattr(_contenders.time, "monotonic", lambda: now)
    snapshots = _contenders.Snapshots(tmp_path, 10.0)
    for step in range(64):
        if snapshots.due:
            snapshots.take(step, {})
        now += 0.7
    assert [s.seconds for s in snapshots.taken] == pytest.approx([10.5, 20.3, 30.1, 40.6])


def test_a_threshold_is_reached_between_two_measurements():
    rising = curve(0.0, 0.4, 0.6, 0.3, 0.9)
    assert benchmark.seconds_to(0.5, rising) == 25.0
    assert benchmark.seconds_to(0.8, rising) == pytest.approx(48.3)
    assert benchmark.seconds_to(0.9, rising) == 50.0
    assert benchmark.seconds_to(0.95, rising) is None
    assert benchmark.seconds_to(0.5, curve(1.0)) == 5.0


def test_where_the_baseline_never_gets_there_the_ratio_is_a_bound():
    # medians over the seeds: of three runs two must get there
    ours = [curve(0.5, 0.9), curve(0.5, 0.8), curve(0.6, 0.7)]
    theirs = [curve(0.1, 0.2, 0.5)] * 3
    told = result(ours, theirs)
    assert told["ours"]["seconds_to"] == {"0.5": 10.0, "0.8": 20.0, "0.9": None, "0.95": None}
    assert told["baseline"]["seconds_to"]["0.5"] == 30.0
    assert told["ratio"] == {"0.5": 3.0, "0.8": {"at_least": 3.0}, "0.9": None, "0.95": None}
    assert told["pictures_per_s_ratio"] == 1.0


def test_what_was_asked_for_in_the_same_way_is_kept(capsys):
    def asked(config):
        return {"config": config, "minutes": 1.0}

    earlier = result([curve(0.5), curve(0.6)], [curve(0.1)])["ours"]
    assert [r["seed"] for r in benchmark._kept("ours", earlier, asked("a"), [1, 2])] == [1]
    assert benchmark._kept("ours", earlier, asked("b"), [0]) == []
    assert "measured anew: another config" in capsys.readouterr().err


def test_the_plot_is_an_svg_that_names_both():
    root = ElementTree.fromstring(benchmark.plot(result([curve(0.5, 0.9)], [curve(0.1, 0.2)])))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"tinydiffusion", "diffusers"} <= texts


@pytest.mark.slow
def test_the_command_keeps_what_it_has_measured(tmp_path):
    kept = tmp_path / "kept.json"
    command = ["--quick", "--out", str(kept), "--plot", str(tmp_path / "both.svg")]
    first = _run(*command)
    assert first == json.loads(kept.read_text())
    assert first.keys() >= {"machine", "ours", "baseline", "ratio", "pictures_per_s_ratio"}
    assert _run("--quick", "--resume-from", str(kept)) == first


def _run(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks/time_to_control.py"), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)
