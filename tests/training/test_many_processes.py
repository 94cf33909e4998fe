"""Two and three processes learn what one learns; one that dies ends all, and the run goes on."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import many_processes
import pytest
import torch
from many_processes import JOB

import tinydiffusion
from tinydiffusion.runtime.processes import ALONE
from tinydiffusion.training.checkpoints.folder import load_checkpoint

pytestmark = pytest.mark.xdist_group("training by several processes")  # `runs` once
ROOT = str(Path(tinydiffusion.__file__).parents[1])
SCRIPT = many_processes.__file__
MUON = {"muon_modules": ["objective.text_encoder"], "accumulation": 2, "num_pictures": 120}


def start(jobs, *, count=1, nodes=1, endpoint="localhost:0", **options):
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)),
        *("--nnodes", str(nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint),
        *("--rdzv-id", "test", SCRIPT, json.dumps(jobs)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, **options)


def finish(process):
    _, errors = process.communicate(timeout=240)
    return process.returncode, errors


def together(count, *jobs):
    code, errors = finish(start(jobs, count=count))
    assert code == 0, errors


def alone(**job):
    many_processes.run({**JOB, **job}, ALONE)


def losses(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return torch.tensor([json.loads(line)["loss"] for line in lines], dtype=torch.float64)


def checkpoints(run_dir):
    return sorted((run_dir / "checkpoints").iterdir())


def assert_close(run_dir, other, atol=1e-6):
    """The last checkpoints' tensors: weights, average, optimizer."""
    ours, theirs = (load_checkpoint(checkpoints(each)[-1]) for each in (run_dir, other))
    for part in ("model", "ema", "optimizer"):
        torch.testing.assert_close(getattr(ours, part), getattr(theirs, part), atol=atol, rtol=0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    alone(run_dir=root / "1")
    alone(run_dir=root / "1-muon", **MUON)
    together(
        2,
        {"run_dir": str(root / "2")},
        {"run_dir": str(root / "2-fsdp"), "strategy": "fsdp"},
        {"run_dir": str(root / "2-muon"), **MUON},
        {"run_dir": str(root / "2-muon-fsdp"), **MUON, "strategy": "fsdp"},
        {"run_dir": str(root / "2-nan"), "num_pictures": 60, "nan_at": [1, 30]},
    )
    together(3, {"run_dir": str(root / "3")})
    return root


@pytest.mark.parametrize("name", ["2", "3", "2-fsdp"])
def test_the_loss_curve_and_the_weights_are_those_of_one_process(runs, name):
    assert len(losses(runs / name)) == 50
    torch.testing.assert_close(losses(runs / name), losses(runs / "1"), atol=1e-5, rtol=0)
    assert_close(runs / name, runs / "1")


@pytest.mark.parametrize("name", ["2-muon", "2-muon-fsdp"])
def test_muon_and_accumulation_too(runs, name):
    """Muon works in bfloat16, where a last bit decides more."""
    torch.testing.assert_close(losses(runs / name), losses(runs / "1-muon"), atol=1e-4, rtol=0)
    assert_close(runs / name, runs / "1-muon", atol=3e-3)


@pytest.mark.parametrize("name", ["1", "2", "3"])
def test_every_epoch_has_every_picture_once_over_all_processes(runs, name):
    told = json.loads((runs / name / "told.json").read_text())
    assert len(told) == int(name)
    seen = Counter(id_ for ids, _ in told for id_ in ids)
    assert len(seen) == 60
    assert set(seen.values()) == {10}
    epochs = [Counter(id_ for ids, _ in told for id_ in _epoch(ids, n)) for n in range(10)]
    assert all(set(epoch.values()) == {1} for epoch in epochs)


def _epoch(ids, number):
    size = len(ids) // 10
    return ids[number * size : (number + 1) * size]


def test_nan_in_one_process_calls_the_step_off_in_all(runs):
    told = json.loads((runs / "2-nan" / "told.json").read_text())
    assert [skipped for _, skipped in told] == [1, 1]


def test_saved_by_two_goes_on_with_one_and_with_three(runs, tmp_path):
    for name in ("to-1", "to-3"):
        shutil.copytree(runs / "2", tmp_path / name)
        for late in checkpoints(tmp_path / name)[4:]:
            shutil.rmtree(late)
    alone(run_dir=tmp_path / "to-1", resume=True)
    together(3, {"run_dir": str(tmp_path / "to-3"), "resume": True})
    for name in ("to-1", "to-3"):
        ids = json.loads((tmp_path / name / "told.json").read_text())[0][0]
        assert len(ids) == (600 - 480) // int(name[3])  # it did go on
        assert len(losses(tmp_path / name)) == 50
        assert_close(tmp_path / name, runs / "1")


def test_a_process_that_is_killed_ends_all_and_the_run_goes_on(runs, tmp_path):
    code, errors = finish(start([{"run_dir": str(tmp_path), "die_at": [1, 440]}], count=2))
    assert code != 0
    assert "another process of this job has ended or is out of reach" in errors
    last = load_checkpoint(checkpoints(tmp_path)[-1])
    assert last.state["pictures_seen"] == 432  # the main process saves what is whole
    together(2, {"run_dir": str(tmp_path), "resume": True, "strategy": "fsdp"})
    assert_close(tmp_path, runs / "1")


def test_when_the_main_process_is_killed_the_last_checkpoint_stays(tmp_path):
    code, errors = finish(start([{"run_dir": str(tmp_path), "die_at": [0, 122]}], count=2))
    assert code != 0
    assert "another process of this job has ended or is out of reach" in errors
    assert load_checkpoint(checkpoints(tmp_path)[-1]).state["pictures_seen"] == 120


def test_two_machines_find_each_other_and_train_together(runs, tmp_path):
    """Two launchers, one process each, meet at a rendezvous as they would over a network."""
    endpoint = f"localhost:{_free_port()}"
    jobs = [{"run_dir": str(tmp_path / "run")}]
    first, second = (
        start(jobs, nodes=2, endpoint=endpoint, cwd=Path(SCRIPT).parent) for _ in range(2)
    )
    for process in (first, second):
        code, errors = finish(process)
        assert code == 0, errors
    assert len(json.loads((tmp_path / "run" / "told.json").read_text())) == 2
    assert_close(tmp_path / "run", runs / "1")


def _free_port():
    import socket

    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]
