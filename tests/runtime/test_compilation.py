"""Proves when training compiles, and that it then learns the same and draws with the same bits."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import compiled_training
import pytest
import torch
from compiled_training import trained
from torch import nn

import tinydiffusion
from tinydiffusion.build import decide_compilation
from tinydiffusion.config import TrainingConfig, from_dict, load
from tinydiffusion.runtime import compilation
from tinydiffusion.runtime.compilation import (
    compile_obstacle,
    compile_trained,
    decide,
    naming_compile_errors,
)
from tinydiffusion.runtime.errors import RunError

ROOT = Path(tinydiffusion.__file__).parents[1]
NO_COMPILER = compile_obstacle(torch.device("cpu"))


# ---- whether ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device_type", "num_pictures", "max_minutes", "compiles"),
    [
        # 105 minutes on a CPU, 3 on CUDA, are where it begins to pay
        ("cpu", 10**9, 104.0, False),
        ("cpu", 10**9, 106.0, True),
        ("cpu", 10**9, None, True),
        ("cpu", 2_048, None, False),
        ("cpu", 2_048, 60.0, False),  # ends long before its budget does
        ("cpu", 104 * 60 * 155, None, False),
        ("cpu", 106 * 60 * 155, None, True),
        ("cpu", 106 * 60 * 155, 5.0, False),
        ("cpu", 10**9, 0.0, False),
        ("cuda", 10**9, 2.9, False),
        ("cuda", 10**9, 3.1, True),
        ("cuda", 2_048, None, False),
        ("cuda", 2_048, 60.0, False),
        ("cuda", 10**9, None, True),
    ],
)
@pytest.mark.parametrize("obstacle", [None, "there is no compiler"])
def test_the_decision(device_type, num_pictures, max_minutes, compiles, obstacle):
    def of(setting):
        seconds = None if max_minutes is None else 60 * max_minutes
        plan = {"num_pictures": num_pictures, "max_seconds": seconds, "obstacle": obstacle}
        return decide(setting, device_type, **plan)

    assert of("never") == (False, "eager: training.compile is never")
    auto = of("auto")
    assert auto.compiles == (compiles and obstacle is None)
    assert auto.reason.startswith("compiled: " if auto.compiles else "eager: ")
    assert auto.mode == auto.reason.partition(":")[0]
    if obstacle is None:
        assert of("always") == (True, "compiled: training.compile is always")
        return
    assert auto.reason == "eager: torch.compile is not possible, there is no compiler"
    with pytest.raises(ValueError, match="'always' is not possible: there is no compiler; 'auto'"):
        of("always")


def test_the_reason_says_how_long_and_from_when_on():
    plan = {"num_pictures": 10**9, "obstacle": None}
    assert decide("auto", "cpu", max_seconds=8400.0, **plan).reason == (
        "compiled: it repays its warm-up in about 140.0 minutes of training (on cpu from 105.0 on)"
    )
    assert decide("auto", "cuda", max_seconds=60.0, **plan).reason == (
        "eager: torch.compile would not repay its warm-up in about 1.0 minutes of training "
        "(on cuda from 3.0 on)"
    )


def test_one_process_that_cannot_compile_decides_for_all():
    plan = {"num_pictures": 10**9, "max_seconds": None}
    decisions = [decide("auto", "cpu", **plan, obstacle=o) for o in (None, "it is broken", None)]
    assert min(decisions) == decisions[1]


@pytest.mark.parametrize(
    ("device_type", "triton", "command", "header", "obstacle"),
    [
        ("cpu", False, "found", True, None),
        ("cpu", False, None, True, "there is no compiler 'c++-of-mine'"),
        ("cpu", False, "found", False, "Python's C headers (Python.h) are not installed"),
        ("cuda", True, "found", True, None),
        ("cuda", False, "found", True, "there is no Triton for the kernels"),
        ("cuda", True, None, True, "there is no compiler 'gcc'"),
        ("mps", True, "found", True, "it is not used on mps"),
    ],
)
def test_obstacles(device_type, triton, command, header, obstacle, monkeypatch, tmp_path):
    if header:
        (tmp_path / "Python.h").touch()
    monkeypatch.setenv("CXX", "c++-of-mine")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(compilation.shutil, "which", lambda name: command)
    monkeypatch.setattr(compilation, "find_spec", lambda name: triton or None)
    monkeypatch.setattr(compilation.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert compile_obstacle(torch.device(device_type)) == obstacle


def test_an_old_gpu_is_an_obstacle(monkeypatch):
    monkeypatch.setattr(compilation, "find_spec", lambda name: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    told = compile_obstacle(torch.device("cuda:1"))
    assert told == "Triton knows no GPU as old as this one"


def test_short_runs_are_eager_by_themselves():
    """No other test waits for a compiler."""
    for config in (
        load(ROOT / "configs/smoke.yaml"),
        from_dict({"training": {"num_pictures": 64}}),
    ):
        assert config.training.compile == TrainingConfig().compile == "auto"
        assert not decide_compilation(config, torch.device("cpu")).compiles


# ---- how -------------------------------------------------------------------------------------


class Net(nn.Module):
    """Few kernels: torch.compile calls the C++ compiler for each."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return torch.tanh(self.conv(x)) + x


class Toy(nn.Module):
    """An objective without text and noise."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network, self.frozen = Net(), Net().requires_grad_(False)

    def loss(self, batch, generators):
        x = batch["image"] / 255
        return (self.network(x) - self.frozen(x).flip(-1)).square().mean(), {}


@pytest.fixture
def compiled_calls(monkeypatch):
    """A stand-in for torch.compile that compiles nothing; the modules whose code was called."""
    calls = []

    def stand_in(function, *, dynamic):
        assert dynamic is False

        def compiled(module, *inputs):
            calls.append(module)
            return function(module, *inputs)

        return compiled

    monkeypatch.setattr(torch, "compile", stand_in)
    return calls


def test_only_what_is_trained_is_compiled_and_only_in_training(compiled_calls):
    toy, x = Toy(), torch.ones(2, 3, 4, 4)
    compile_trained(toy.network, toy.frozen)
    toy.frozen(x)
    with torch.no_grad():
        toy.network(x)
    toy.network.eval()(x)
    assert compiled_calls == []
    toy.network.train()(x)
    assert compiled_calls == [toy.network]


def test_names_and_weights_stay(compiled_calls):
    toy, plain = Toy(), Toy()
    compile_trained(toy.network)
    assert type(toy.network) is Net
    assert repr(toy) == repr(plain)
    assert dict(toy.named_modules()).keys() == dict(plain.named_modules()).keys()
    torch.testing.assert_close(toy.state_dict(), plain.state_dict(), atol=0, rtol=0)


def test_a_copy_uses_its_own_weights(compiled_calls):
    """FSDP2 trains a copy of the objective."""
    toy, x = Toy(), torch.ones(2, 3, 4, 4)
    compile_trained(toy.network)
    other = copy.deepcopy(toy)
    nn.init.zeros_(other.network.conv.weight)
    assert not torch.equal(other.network(x), toy.network(x))
    assert compiled_calls == [other.network, toy.network]


@pytest.mark.skipif(NO_COMPILER is not None, reason=f"nothing can be compiled: {NO_COMPILER}")
def test_compiled_code_learns_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    eager, compiled = Toy(), Toy()
    compile_trained(compiled.network)
    torch.testing.assert_close(trained(compiled, 2), trained(eager, 2), atol=1e-4, rtol=0)
    assert any(tmp_path.rglob("*.cpp"))  # it was compiled


def test_a_compiler_that_fails_is_told_in_one_line():
    def fail(graph, inputs):
        raise OSError("g++ ended with exit code 1\nand a page of words")

    network = torch.compile(nn.Linear(2, 2), backend=fail)
    words = r"torch\.compile failed: .*training\.compile never"
    with pytest.raises(RunError, match=words) as caught, naming_compile_errors():
        network(torch.ones(1, 2))
    assert "\n" not in str(caught.value)
    mine = RuntimeError("another")
    with pytest.raises(RuntimeError) as caught, naming_compile_errors():
        raise mine
    assert caught.value is mine


def outcomes(*launcher, strategy="ddp"):
    """In a process of its own: here every function checks its shapes, which no graph can hold."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = [sys.executable, *launcher, compiled_training.__file__, strategy]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told) == 2  # without and with gradient checkpointing
    assert max(each["difference"] for each in told) < 1e-4 < 1e-3 < told[0]["changed"]
    return told


def test_network_and_text_encoder_are_one_graph_each_and_never_compiled_again():
    for told in outcomes():
        assert (told["graphs"], told["graph_breaks"]) == (2, 0)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_learn_the_same_too(strategy):
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d")
    for told in outcomes(*launcher, "--rdzv-endpoint", "localhost:0", strategy=strategy):
        # FSDP2 puts the tensors of a block together between two graphs.
        assert (told["graphs"] == 2) == (told["graph_breaks"] == 0) == (strategy == "ddp")
