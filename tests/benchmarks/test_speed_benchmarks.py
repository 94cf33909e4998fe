"""The speed benchmarks run, compare what they say they compare, and tell a broken promise."""

import importlib
import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch

from tinydiffusion import config as config_file
from tinydiffusion.build import build_dataset, build_objective
from tinydiffusion.layers.kernels.int8 import int8_obstacle
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.survey import survey

FOLDER = Path(__file__).parents[2] / "benchmarks"
META = torch.device("meta")
CPU = torch.device("cpu")
SUMMARY = {"rounds", "median"}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers and numpy 2


@pytest.fixture
def benchmark(monkeypatch):
    """A benchmark's module, as `python benchmarks/<name>.py` would have it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    return importlib.import_module


@pytest.fixture
def run(monkeypatch, capsys):
    """What a benchmark prints; of the speeds nothing is asserted."""

    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *arguments])
        assert module.main() == 0
        result = json.loads(capsys.readouterr().out)
        assert result["broken"] == []
        assert {"processor", "cores", "threads", "torch", "multiplies_bfloat16"} <= {
            *result["machine"]
        }
        return result

    return run


# ---- what is shared --------------------------------------------------------------------------


def test_every_second_round_goes_backwards(benchmark):
    order = []
    contestants = {
        name: lambda name=name: float(len(order.append(name) or order)) for name in "abc"
    }
    results = benchmark("_measuring").in_turns(contestants, rounds=3)
    assert "".join(order) == "abccbaabc"
    assert results == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}


def test_ratios_are_of_rounds_and_not_of_medians(benchmark):
    assert benchmark("_measuring").ratio([1, 10, 3], [2, 5, 3]) == {
        "rounds": [0.5, 2.0, 1.0],
        "median": 1.0,
    }


def test_what_is_called_in_a_process_of_its_own_returns_and_raises_here(benchmark):
    with benchmark("_measuring").OwnProcess() as process:
        assert process(os.getpid) != os.getpid()
        assert process(os.getpid) == process(os.getpid)
        with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
            process(math.sqrt, -1.0)


def test_plain_attention_is_what_diffusers_computes(benchmark):
    rivals = benchmark("_rivals")
    network = rivals.diffusers_unet(8, (8, 16), size=8, heads=(2, 2), groups=8)
    inputs, module = rivals.Inputs.random(2, 8, 3, 8, CPU), network.build().eval()
    with torch.no_grad():
        expected = network.call(module, inputs)
        rivals.replace_attention(module)
        torch.testing.assert_close(network.call(module, inputs), expected)


# ---- train_throughput ------------------------------------------------------------------------


def test_the_networks_that_are_trained_have_equal_flops(benchmark):
    throughput = benchmark("train_throughput")
    scale, rivals = throughput.FULL, benchmark("_rivals")
    inputs = rivals.Inputs.random(1, scale.size, scale.tokens, scale.text_dim, META)
    networks, _ = throughput.networks(scale)
    (_, ours), (parameters, theirs) = (networks[n].count(inputs) for n in ("ours", "diffusers"))
    assert parameters / 1e6 == pytest.approx(24.8, abs=0.05)
    assert theirs / 1e9 == pytest.approx(6.08, rel=0.05)
    assert 1 <= ours / theirs < 1.02
    assert networks["ours small"].count(inputs)[1] / 1e9 == pytest.approx(3.0, rel=0.02)


def test_train_throughput_prints_its_settings(benchmark, run, monkeypatch):
    throughput = benchmark("train_throughput")
    chosen = ("ours bf16", "diffusers bf16 plain attention", "diffusers bf16", "ddpm-pytorch bf16")
    expected = {name: throughput.SETTINGS[name] for name in chosen}
    compiled = {name: each for name, each in throughput.SETTINGS.items() if each.compiled}
    monkeypatch.setattr(throughput, "SETTINGS", {**expected, **compiled})  # a process for each
    result = run(throughput, "--quick", "--skip-compile", "--rounds=1", "--steps=1")
    missing = result["missing"]
    assert [*result["settings"]] == [n for n, s in expected.items() if s.network not in missing]
    assert all("bench" in reason for reason in missing.values())
    for row in result["settings"].values():
        assert {*row["pictures_per_s"]} == SUMMARY
        assert {"useful_gflop_per_s", "share_of_convolution_peak"} <= {*row}
    assert {*result["ratios"]["ours / diffusers eager"]} > SUMMARY
    assert {"parameters", "forward_gflop"} == {*result["networks"]["diffusers"]}


def test_train_throughput_says_what_the_processor_allows(benchmark):
    paces = {"ours bf16": [20.0, 22.0], "diffusers fp32": [5.0, 5.0], "diffusers bf16": [10.0, 8.0]}
    ratios = benchmark("train_throughput").compare(paces, {"ours bf16": 36.0})
    eager = ratios["ours / diffusers eager"]
    assert eager["settings"] == ["ours bf16", "diffusers bf16"]
    assert (eager["rounds"], eager["at_peak"]) == ([2.0, 2.75], 4.0)


def test_train_throughput_tells_a_broken_promise(benchmark):
    throughput = benchmark("train_throughput")
    rows = {"ours bf16": {"share_of_convolution_peak": 0.4}}
    ratios = {"ours / diffusers eager": {"median": 2.6}}
    verdict = throughput.verdict({"settings": rows, "ratios": ratios}, throughput.PROMISES["cpu"])
    assert verdict == {
        "broken": ["ours: share of convolution peak: 0.4, at least 0.5 was promised"],
        "not_measured": ["ours / diffusers plain attention compiled"],
    }


# ---- sample_speed ----------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path):
    """The folder of a model that has learned nothing."""
    config = config_file.from_dict({
        "dataset": {"name": "scenes", "num_scenes": 16},
        "validation": {"split": "held_out", "num_scenes": 8},
        "text_encoder": {"name": "clip", "width": 32, "layers": 1, "heads": 2},
        "network": {"name": "unet", "channels": [64, 64], "layers_per_block": 1},
        "sampling": {"steps": 1, "guidance_scale": 2.0},
    })  # fmt: skip
    objective = build_objective(config, survey(build_dataset(config.dataset))[0]).eval()
    parts = objective.denoiser.network, objective.text_encoder
    TextToImage(*parts, config, (3, 32, 32)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
def test_a_cold_process_makes_a_picture(benchmark, model):
    flags = ("--sampler", "heun", "--steps", "2")
    assert benchmark("sample_speed").first_picture(model, "a red circle", flags, "cpu") > 0


def test_sample_speed_prints_quality_beside_speed(benchmark, run, model, monkeypatch):
    speed = benchmark("sample_speed")
    monkeypatch.setattr(speed, "first_picture", lambda *_, **__: 1.0)
    result = run(speed, str(model), "--quick", "--student", str(model))
    student = result["student"]
    assert (student["setting"], student["evaluations"]) == ("euler:1", 1)
    assert {"scene_accuracy", "pixel_fd"} < {*student["quality"]}
    ours, theirs = (result["networks"][name]["forward_gflop"] for name in ("ours", "diffusers"))
    assert 0.7 < theirs / ours <= 1
    assert result["default"]["first_picture_s"]["median"] > 0
    assert [row["evaluations"] for row in result["settings"].values()] == [2, 4]
    for row in result["settings"].values():
        assert {"scene_accuracy", "pixel_fd"} < {*row["quality"]}
        assert {*row["pictures_per_s"]} == {*row["first_picture_s"]} == SUMMARY
    ddpm = result["settings"]["ddpm:2"]
    assert ddpm["diffusers"]["scheduler"] == "DDPMScheduler"
    assert {*ddpm["ratio"]} == {*SUMMARY, "at_equal_flops"}
    assert ddpm["ratio"]["at_equal_flops"] == pytest.approx(
        ddpm["ratio"]["median"] * ours / theirs, rel=2e-3
    )


def test_every_scheduler_takes_few_steps(benchmark):
    theirs, rivals = benchmark("_diffusers_sampling"), benchmark("_rivals")
    network = rivals.diffusers_unet(8, (8, 16), size=8, heads=(2, 2), groups=8)
    rival = theirs.Rival(network, rivals.Inputs.random(2, 8, 3, 8, CPU), torch.float32, 2.0)
    for scheduler in theirs.SCHEDULERS.values():
        x = rival.sample(scheduler, 4, rival.noise)
        assert x.shape == (2, 3, 8, 8)
        assert torch.isfinite(x).all()


def sampled(evaluations, accuracy, distance, ratio):
    quality = {"scene_accuracy": accuracy, "pixel_fd": distance}
    return {"evaluations": evaluations, "quality": quality, "ratio": {"median": ratio}}


@pytest.mark.parametrize(
    ("few", "seconds", "count"),
    [
        (sampled(10, 0.89, 1.05, 2.6), 5, 0),
        (sampled(10, 0.87, 1.0, 2.6), 5, 1),
        (sampled(10, 0.95, 1.2, 2.6), 5, 1),
        (sampled(10, 0.9, 1.0, 2.4), 7, 2),
    ],
)
def test_sample_speed_tells_broken_promises(benchmark, few, seconds, count):
    settings = {"ddpm:1000": sampled(1000, 0.9, 1.0, 3.0), "euler:10": few}
    default = {"first_picture_s": {"median": seconds}}
    verdict = benchmark("sample_speed").verdict({"settings": settings, "default": default})
    assert len(verdict["broken"]) == count
    assert verdict["not_measured"] == []


@pytest.mark.parametrize(
    ("evaluations", "accuracy", "count"), [(4, 0.86, 0), (4, 0.84, 1), (5, 0.86, 1), (8, 0.5, 2)]
)
def test_a_student_is_held_to_its_promise(benchmark, evaluations, accuracy, count):
    settings = {"ddpm:1000": sampled(1000, 0.9, 1.0, 3.0), "euler:10": sampled(10, 0.9, 1.0, 3.0)}
    result = {
        "settings": settings,
        "default": {"first_picture_s": {"median": 1.0}},
        "student": {"evaluations": evaluations, "quality": {"scene_accuracy": accuracy}},
    }
    assert len(benchmark("sample_speed").verdict(result)["broken"]) == count


# ---- scaling ---------------------------------------------------------------------------------


def test_scaling_measures_a_row_for_every_value(benchmark, monkeypatch):
    scaling = benchmark("scaling")
    smoke = config_file.load(FOLDER.parent / "configs/smoke.yaml")
    monkeypatch.setattr(scaling, "QUICKSTART", smoke)
    small, large = scaling.grow({"size": (16, 32)}, steps=1, rounds=1)["size"]
    assert {*small["seconds_per_picture"]} == SUMMARY
    assert small["parameters"] == large["parameters"]
    assert small["state_bytes"] == large["state_bytes"]
    assert 1.5 < large["step_bytes"] / small["step_bytes"] < 4  # 4 times the pixels


@pytest.mark.slow
def test_scaling_prints_all_axes_and_data_sets(benchmark, run):
    scaling = benchmark("scaling")
    result = run(scaling, "--quick", "--rounds=1", "--steps=1", "--data-steps=1")
    assert {*result["axes"]} == {*scaling.QUICK_AXES}
    rows = result["data"]
    assert [row["num_scenes"] for row in rows] == [*scaling.QUICK_DATA_SIZES]
    assert rows[0]["growth"] == rows[0]["ratio"]["median"] == 1
    assert all(row["peak_mib"] > 100 for row in rows)


def test_scaling_tells_broken_promises(benchmark):
    rows = [
        {"num_scenes": 10, "growth": 1.0, "ratio": {"median": 1.0}},
        {"num_scenes": 100, "growth": 1.06, "ratio": {"median": 0.94}},
    ]
    broken = benchmark("scaling").verdict(rows)
    assert [line.partition(":")[0] for line in broken] == ["100 scenes", "100 scenes"]


# ---- winograd --------------------------------------------------------------------------------


def test_winograd_measures_both_ways_of_every_layer(benchmark, run, monkeypatch):
    winograd = benchmark("winograd")
    monkeypatch.setattr(winograd, "DTYPES", (torch.float32,))
    small, wide = run(winograd, "--quick", "--rounds=2")["layers"]
    assert [small["used"], wide["used"]] == [False, True]
    for row in (small, wide):
        assert {*row["error"]} == {"direct", "winograd"}
        assert 0 < row["error"]["winograd"] < 3e-6
        for passes in ("forward", "both"):
            assert {*row[passes]["times_faster"]} == SUMMARY
            assert row[passes]["direct_ms"] > 0
            assert row[passes]["winograd_ms"] > 0


def test_winograd_tells_a_layer_that_is_used_and_slower(benchmark, monkeypatch, capsys):
    winograd = benchmark("winograd")
    monkeypatch.setattr(winograd, "DTYPES", (torch.float32,))
    monkeypatch.setattr(winograd, "SHAPES", [(1, 2, 2, 4)])
    monkeypatch.setattr(winograd, "pays", lambda *_: True)
    monkeypatch.setattr(winograd, "ratio", lambda *_: {"rounds": [0.9], "median": 0.9})
    monkeypatch.setattr(sys, "argv", ["winograd.py", "--rounds=1"])
    assert winograd.main() == 1
    assert len(json.loads(capsys.readouterr().out)["broken"]) == 1


# ---- int8 ------------------------------------------------------------------------------------


@pytest.mark.skipif(
    int8_obstacle(torch.device("cpu")) is not None, reason="no int8 convolutions on this CPU"
)
def test_int8_measures_both_ways_of_every_layer(benchmark, run, monkeypatch):
    measuring = benchmark("int8")
    monkeypatch.setattr(measuring, "has_amx", lambda: False)
    small, wide, *_ = run(measuring, "--quick", "--rounds=2")["layers"]
    assert [small["used"], wide["used"]] == [False, True]
    for row in (small, wide):
        assert 0 < row["error"]["direct"] < row["error"]["int8"] < 0.05
        assert {*row["times_faster"]} == SUMMARY
        assert row["direct_ms"] > 0
        assert row["int8_ms"] > 0


@pytest.mark.skipif(
    int8_obstacle(torch.device("cpu")) is not None, reason="no int8 convolutions on this CPU"
)
def test_int8_tells_a_layer_that_is_used_and_slower(benchmark, monkeypatch, capsys):
    measuring = benchmark("int8")
    monkeypatch.setattr(measuring, "DTYPES", (torch.float32,))
    monkeypatch.setattr(measuring, "SHAPES", [(1, 2, 2, 4)])
    monkeypatch.setattr(measuring, "pays", lambda *_: True)
    monkeypatch.setattr(measuring, "has_amx", lambda: False)
    monkeypatch.setattr(measuring, "ratio", lambda *_: {"rounds": [0.9], "median": 0.9})
    monkeypatch.setattr(sys, "argv", ["int8.py", "--rounds=1"])
    assert measuring.main() == 1
    assert len(json.loads(capsys.readouterr().out)["broken"]) == 1


def test_int8_says_where_there_is_nothing_to_measure(benchmark, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    monkeypatch.setattr(sys, "argv", ["int8.py"])
    with pytest.raises(SystemExit, match="nothing to measure: this CPU has no AVX512-VNNI"):
        benchmark("int8").main()
