"""A hang, a dead worker, a full disk, a second process: each ends with its own message and code."""

import errno
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from training_toys import FlippingPictures, assert_same_bits, learned, trainer

from tinydiffusion.runtime.disk_wait import patiently
from tinydiffusion.runtime.durable import write_synced
from tinydiffusion.runtime.errors import DiskError, DiskFullError, NonFiniteError, WorkerError
from tinydiffusion.runtime.locks import FolderLock
from tinydiffusion.runtime.memory import ADVICE, naming_memory
from tinydiffusion.training.checkpoints import data_record


def run_python(script, *arguments):
    command = [
        sys.executable,
        "-c",
        script,
        str(Path(__file__).parents[1] / "toys"),
        *map(str, arguments),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


# ---- hangs -----------------------------------------------------------------------------------

HANGS = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from training_toys import FlippingPictures, trainer

class Sleeping(FlippingPictures):
    def augment(self, index, generator):
        if index == 5:
            time.sleep(60)
        return super().augment(index, generator)

run = trainer(Path(sys.argv[2]), dataset=Sleeping(), hang_seconds=1.0)
run.train()
"""


def test_a_hang_ends_with_the_stacks_and_code_5(tmp_path):
    ended = run_python(HANGS, tmp_path)
    assert ended.returncode == 5
    assert "nothing has moved for 1 s" in ended.stderr
    assert "in augment" in ended.stderr


WAITS = """
import sys, time
from tinydiffusion.runtime.watchdog import Watchdog
with Watchdog(0.8) as dog:
    for _ in range(8):
        time.sleep(0.2)
        dog.beat()
with Watchdog(0.2):
    pass
time.sleep(0.5)
print("alive")
"""


def test_a_slow_run_is_no_hang_and_the_watch_ends_with_its_block():
    assert run_python(WAITS).stdout == "alive\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGSTOP")
def test_a_halted_process_is_no_hang():
    script = WAITS.replace("range(8)", "range(25)")
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        time.sleep(3.0)
        process.send_signal(signal.SIGSTOP)
        time.sleep(2.0)
        process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=60)[0] == "alive\n"


# ---- workers ---------------------------------------------------------------------------------


class Killing(FlippingPictures):
    """Kills the process that asks for one picture, unless that is the trainer's own."""

    def __init__(self):
        super().__init__()
        self.parent = os.getpid()

    def augment(self, index, generator):
        if index == 5 and os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().augment(index, generator)


def test_a_dead_worker_is_named_and_what_was_learned_is_saved(tmp_path):
    run = trainer(tmp_path, dataset=Killing(), workers=2)
    with pytest.raises(WorkerError, match=r"has died \(DataLoader worker.*num_workers"):
        run.train()
    assert run.step == 0 or run.checkpoints.load()[1].state["step"] == run.step
    resumed, unbroken = trainer(tmp_path), trainer(tmp_path / "unbroken")
    if resumed.checkpoints.list():
        resumed.resume()
    resumed.train()
    unbroken.train()
    assert_same_bits(learned(resumed), learned(unbroken))


class Refusing(FlippingPictures):
    def augment(self, index, generator):
        raise ValueError(f"picture {index} is blue")


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_wrong_with_the_data_is_one_line_from_workers_too(tmp_path, workers):
    with pytest.raises(ValueError, match=r"^picture \d is blue$"):
        trainer(tmp_path, dataset=Refusing(), workers=workers).train()


# ---- disks -----------------------------------------------------------------------------------


def failing(times, error=DiskFullError):
    """A function that fails so many times, and the list of its calls."""
    calls = []

    def write():
        calls.append(time.monotonic())
        if len(calls) <= times:
            raise error("5.0 MB needed, 1.0 MB free")

    return write, calls


def test_a_disk_that_comes_back_is_waited_for(monkeypatch):
    monkeypatch.setattr("tinydiffusion.runtime.disk_wait.RETRY_EVERY", 0.05)
    write, calls = failing(2)
    with pytest.warns(UserWarning, match="5.0 MB needed, 1.0 MB free. Waiting up to 5 s"):
        patiently(write, seconds=5.0, interrupted=lambda: False)
    assert len(calls) == 3


def test_waiting_has_an_end(monkeypatch):
    monkeypatch.setattr("tinydiffusion.runtime.disk_wait.RETRY_EVERY", 0.05)
    write, _ = failing(1000)
    start = time.monotonic()
    with warnings.catch_warnings(action="ignore"), pytest.raises(DiskFullError, match="needed"):
        patiently(write, seconds=0.3, interrupted=lambda: False)
    assert 0.3 <= time.monotonic() - start < 60
    write, calls = failing(1000)
    with pytest.raises(DiskFullError):  # a signal ends it at once, and 0 never waits
        patiently(write, seconds=1000.0, interrupted=lambda: True)
    with pytest.raises(DiskFullError):
        patiently(write, seconds=0.0, interrupted=lambda: False)
    assert len(calls) == 2


def test_too_little_space_is_found_before_the_first_step(tmp_path, monkeypatch):
    run = trainer(tmp_path)
    monkeypatch.setattr(
        "shutil.disk_usage", lambda _: type("Usage", (), {"free": 3_000_000})()
    )  # room for two of three
    with pytest.raises(DiskFullError, match=r"3\.\d MB needed, 3\.0 MB free"):
        run.train()
    assert run.step == 0


def test_a_closed_folder_is_found_before_the_first_step(tmp_path, monkeypatch):
    def refuse(path):  # a mode would not do: root may write anywhere
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    run = trainer(tmp_path / "run")
    monkeypatch.setattr("tinydiffusion.training.checkpoints.folder.make_folder", refuse)
    with pytest.raises(DiskError, match=r"cannot write in .*checkpoints: Permission denied"):
        run.train()
    assert run.step == 0


def test_a_file_in_the_way_is_found_before_the_first_step(tmp_path):
    (tmp_path / "checkpoints").write_text("not a folder")
    run = trainer(tmp_path)
    with pytest.raises(DiskError, match=r"cannot write in .*checkpoints: File exists"):
        run.train()
    assert run.step == 0


def test_a_disk_that_fails_ends_the_run_and_keeps_the_older_checkpoints(tmp_path, monkeypatch):
    run = trainer(tmp_path)
    save = run.checkpoints.save

    def full(checkpoint, *, pictures_seen):
        if pictures_seen > 80:
            raise DiskFullError("5.0 MB needed, 1.0 MB free")
        return save(checkpoint, pictures_seen=pictures_seen)

    monkeypatch.setattr(run.checkpoints, "save", full)
    with pytest.raises(DiskFullError):
        run.train()
    assert run.pictures_seen == 120
    assert run.checkpoints.load()[1].state["pictures_seen"] == 80
    resumed, unbroken = trainer(tmp_path), trainer(tmp_path / "unbroken")
    resumed.resume()
    resumed.train()
    unbroken.train()
    assert_same_bits(learned(resumed), learned(unbroken))


# ---- numbers ---------------------------------------------------------------------------------


def test_the_pictures_of_a_diverged_run_are_named(tmp_path):
    run = trainer(tmp_path, log_every=4)

    def loss(batch, generators):
        value = next(iter(run.learner.parameters.values())).sum() * float("nan")
        return value, {}

    run.learner.module.loss = loss
    with pytest.raises(NonFiniteError, match=r"non_finite\.json"):
        run.train()
    suspects = json.loads((tmp_path / "non_finite.json").read_text())
    assert suspects["first_position"] == 0
    expected = [name for p in range(0, 40, 4) for name in run.batches.batch_at(p)["id"]]
    assert suspects["ids"] == expected


# ---- locks -----------------------------------------------------------------------------------

HOLDS = """
import sys
from pathlib import Path
from tinydiffusion.runtime.locks import FolderLock
with FolderLock(Path(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path):
    command = [sys.executable, "-c", HOLDS, "", str(tmp_path / "run")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match=f"in use by process {process.pid} on "),
            FolderLock(tmp_path / "run"),
        ):
            pass
        process.kill()
        process.wait()
    with FolderLock(tmp_path / "run"):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DiskError, match=r"cannot write in .*file.run: "),
        FolderLock(tmp_path / "file/run"),
    ):
        pass


# ---- signals, clocks, networks -----------------------------------------------------------------


@pytest.mark.parametrize("moment", range(1, 8))
def test_a_signal_while_saving_completes_the_checkpoint(tmp_path, monkeypatch, moment):
    calls = itertools.count(1)

    def interrupted(path, data):
        if next(calls) == 2 + moment:  # after the trial at the start and the record of the data
            os.kill(os.getpid(), signal.SIGINT)
        write_synced(path, data)

    monkeypatch.setattr("tinydiffusion.training.checkpoints.folder.write_synced", interrupted)
    run = trainer(tmp_path)
    result = run.train()
    assert result.stopped_by == "SIGINT"
    path, checkpoint = run.checkpoints.load()
    assert checkpoint.state["pictures_seen"] == result.pictures_seen
    assert [p.name for p in run.checkpoints.path.iterdir() if p.name.startswith(".")] == []
    assert path == run.checkpoints.list()[-1]


def test_neither_the_wall_clock_nor_the_network_is_asked(tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("asked")

    monkeypatch.setattr(time, "time", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert trainer(tmp_path).train().pictures_seen == 160


# ---- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate mem"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ],
)
def test_lack_of_memory_is_told_from_other_errors(error):
    expected = RuntimeError if "alloc_cpu.cpp" in str(error) else None
    with pytest.raises(expected or RuntimeError) as caught, naming_memory(torch.device("cpu")):
        raise error
    if expected is None:
        assert caught.value.exit_code == 6
        assert all(line in str(caught.value) for line in ADVICE)
    else:
        assert caught.value is error


# ---- data ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"c": "3", "d": "4"}, "1 added (first 'd')"),
        ({"c": None}, "1 removed (first 'c')"),
        ({"a": "x", "b": "y"}, "2 edited (first 'a')"),
        ({"a": None, "b": "y", "d": "1"}, "1 added (first 'd'), 1 removed (first 'a'), 1 edited"),
    ],
)
def test_a_change_of_the_data_is_told_in_words(tmp_path, change, words):
    before = {"a": "1", "b": "2", "c": "3"}
    data_record.save_record(tmp_path, before)
    after = {name: value for name, value in (before | change).items() if value is not None}
    told = data_record.describe_change(tmp_path, data_record.digest(before), after)
    assert words in told


def test_another_order_is_told_and_a_lost_record_is_no_crash(tmp_path):
    before = {"a": "1", "b\udc80": "2"}  # a name that is no UTF-8
    data_record.save_record(tmp_path, before)
    after = dict(reversed(before.items()))
    old = data_record.digest(before)
    assert data_record.describe_change(tmp_path, old, after) == "order changed"
    (file,) = (tmp_path / "data").iterdir()
    file.write_text("{}")
    assert data_record.describe_change(tmp_path, old, after).startswith("changed; ")
    file.unlink()
    assert data_record.describe_change(tmp_path, old, after).startswith("changed; ")
