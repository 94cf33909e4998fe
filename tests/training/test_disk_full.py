"""A disk that is full or out of reach costs the checkpoint being written and nothing else.

Rows T7 and T8 of the fault catalogue. The small disks are mounted in a child process with mounts of
its own; where that is not allowed, those tests are skipped.
"""

import contextlib
import ctypes
import errno
import functools
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from disk_shim import Disk, Strike, in_child, moments

from tinydiffusion.cli.main import main
from tinydiffusion.runtime.errors import DiskError, DiskFullError
from tinydiffusion.training.checkpoints import folder as module
from tinydiffusion.training.checkpoints.folder import (
    NAME,
    Checkpoint,
    CheckpointFolder,
    load_checkpoint,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs fork and /proc")
NUMBERS = re.compile(r"[\d.]+ MB needed[^,]*, [\d.]+ MB free")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OUT_OF_REACH = (errno.EROFS, errno.ESTALE, errno.EIO)
NEW_MOUNTS, NEW_USER = 0x20000, 0x10000000  # of unshare(2)
READ_ONLY, PRIVATE = 1, 1 << 18 | 1 << 14  # of mount(2)


def make(value, size=1):
    weight = {"weight": torch.full((size,), value)}
    return Checkpoint(weight, weight, weight, {}, state={"value": value})


def values(folder):
    """The value of every checkpoint, each verified."""
    return [load_checkpoint(path).state["value"] for path in folder.list()]


def unfinished(folder):
    return [path.name for path in folder.path.iterdir() if not NAME.fullmatch(path.name)]


# ---- an error out of any file operation ------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Two checkpoints that are kept, with values 1.0 and 2.0."""
    folder = CheckpointFolder(tmp_path / "checkpoints", keep=2)
    for value in (1, 2):
        folder.save(make(float(value)), pictures_seen=value)
    return folder


@linux
@pytest.mark.parametrize("number", [*FULL, *OUT_OF_REACH], ids=errno.errorcode.get)
def test_an_error_at_any_operation_costs_at_most_the_new_checkpoint(folder, tmp_path, number):
    def fail():
        raise OSError(number, os.strerror(number))

    before = shutil.copytree(folder.path, tmp_path / "before")
    with Disk(tmp_path) as disk:
        folder.save(make(3.0), pictures_seen=3)
    failed = 0
    for strike in moments(disk.operations):
        shutil.rmtree(folder.path)
        shutil.copytree(before, folder.path)
        error = error_of_save(folder, 3, Disk(tmp_path, Strike(*strike, fail)))
        if error is None:
            assert values(folder) == [2.0, 3.0]
        else:
            failed += 1
            assert f"{folder.path}: {os.strerror(number)}" in str(error)
            assert isinstance(error, DiskFullError) == (number in FULL)
            assert bool(NUMBERS.search(str(error))) == (number in FULL)
            assert values(folder)[-1] in (2.0, 3.0)
        assert error_of_save(folder, 4, Disk(tmp_path)) is None
        assert values(folder)[-1] == 4.0
        assert unfinished(folder) == []
    assert failed > len(disk.operations) / 2


def error_of_save(folder, value, disk=None, size=1) -> DiskError | None:
    try:
        with disk or contextlib.nullcontext():
            folder.save(make(float(value), size), pictures_seen=value)
    except DiskError as error:
        return error
    return None


# ---- small disks -----------------------------------------------------------------------------

libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def mount(kind: bytes, at: bytes, flags: int = 0, options: bytes | None = None) -> None:
    if libc.mount(kind, at, kind, ctypes.c_ulong(flags), options):
        raise OSError(ctypes.get_errno(), "mount")


def on_small_disk(size: str) -> Callable:
    """Runs the test in a child process with a disk of this size at its `tmp_path`."""

    def small(test):
        @functools.wraps(test)
        def wrapped(tmp_path):
            def run():
                own_user = 0 if os.geteuid() == 0 else NEW_USER
                if libc.unshare(NEW_MOUNTS | own_user):
                    os._exit(77)
                mount(b"none", b"/", PRIVATE)
                mount(b"tmpfs", bytes(tmp_path), options=f"size={size}".encode())
                test(tmp_path)

            if (code := in_child(run)) == 77:
                pytest.skip("no mounts allowed here")
            assert code == 0

        return linux(wrapped)

    return small


def free(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def fill(path: Path, left: int) -> None:
    """Leave so many bytes free."""
    file = path / "filler"
    file.unlink(missing_ok=True)
    with file.open("wb") as filler:
        filler.write(bytes(max(0, free(path) - left)))


SIZE = 10_000  # numbers per tensor: 40 kB a file, 120 kB a checkpoint


def try_every_free_space(tmp_path) -> list[int]:
    """Saves with ever more space, from none up. Those that failed, in bytes free."""
    folder = CheckpointFolder(tmp_path / "checkpoints", keep=1)
    folder.save(make(1.0, SIZE), pictures_seen=1)
    failed = []
    for left in range(0, 250_000, 8192):
        fill(tmp_path, left)
        before = free(tmp_path)
        error = error_of_save(folder, 2, size=SIZE)
        if error is None:
            break
        failed.append(left)
        assert NUMBERS.search(str(error))
        assert values(folder) == [1.0]
        assert unfinished(folder) == []
        assert free(tmp_path) == before
    assert values(folder) == [2.0]
    (tmp_path / "filler").unlink()
    folder.save(make(3.0, SIZE), pictures_seen=3)
    assert values(folder) == [3.0]
    return failed


@on_small_disk("2m")
def test_a_full_disk_keeps_the_old_checkpoint_and_names_the_numbers(tmp_path):
    assert len(try_every_free_space(tmp_path)) > 10


@on_small_disk("2m")
def test_a_disk_that_fills_up_while_saving_does_too(tmp_path):
    """The space that there was at the start is gone: another process was quicker."""
    real = shutil.disk_usage
    module.shutil.disk_usage = lambda path: real(path)._replace(free=10**9)
    failed = try_every_free_space(tmp_path)
    assert len(failed) > 10
    assert max(failed) < 150_000


@on_small_disk("600k")
def test_what_a_kill_left_makes_way_for_the_next_save(tmp_path):
    """A half-written checkpoint must not be what the space is missing for."""
    folder = CheckpointFolder(tmp_path / "checkpoints", keep=1)
    folder.save(make(1.0, SIZE), pictures_seen=1)
    shutil.copytree(folder.list()[0], folder.path / ".tmp-000002-pictures-2")
    fill(tmp_path, 100_000)
    folder.save(make(2.0, SIZE), pictures_seen=2)
    assert values(folder) == [2.0]


@linux
def test_a_limit_on_file_size_keeps_the_old_checkpoint(folder):
    import resource

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for limit in (0, 1, 1000, 39_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            with pytest.raises(DiskFullError, match=NUMBERS):
                folder.save(make(3.0, SIZE), pictures_seen=3)
            assert values(folder) == [1.0, 2.0]
            assert unfinished(folder) == []
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        folder.save(make(3.0, SIZE), pictures_seen=3)
        assert values(folder) == [2.0, 3.0]

    assert in_child(limited) == 0


# ---- the command -----------------------------------------------------------------------------

CONFIG = """
dataset: {name: scenes, size: 16, num_scenes: 16}
text_encoder: {name: clip, width: 8, layers: 1, heads: 2}
network: {name: unet, channels: [8], head_dim: 8, attention_levels: [], layers_per_block: 1,
  patch_size: 4, preview_size: 4}
training:
  {num_pictures: 80, batch_size: 2, warmup_pictures: 8, checkpoint_every: 4, log_every: 8,
   precision: float32, device: cpu, disk_wait_minutes: 0.0}
sampling: {steps: 1, every: 1000, num_prompts: 1}
"""


def train(folder: Path, name: str) -> tuple[int, str]:
    """Exit code and standard error of the command."""
    (folder.parent / "tiny.yaml").write_text(CONFIG)
    command = ["train", "--config", str(folder.parent / "tiny.yaml"), "--run-dir"]
    said = folder.parent / "said.txt"
    with said.open("w") as file, contextlib.redirect_stderr(file):
        code = main([*command, str(folder / name)])
    return code, said.read_text()


def fill_after_the_first_checkpoint(disk: Path, run: str) -> threading.Thread:
    def watch():
        while not CheckpointFolder(disk / run / "checkpoints").list():
            time.sleep(0.001)
        fill(disk, 0)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@on_small_disk("30m")
def test_a_run_on_a_disk_that_fills_up_ends_with_exit_3_and_goes_on_with_the_same_command(tmp_path):
    os.environ["TINYDIFFUSION_CACHE"] = str(tmp_path / "cache")
    disk = tmp_path / "disk"
    disk.mkdir()
    assert train(disk, "unbroken")[0] == 0
    filling = fill_after_the_first_checkpoint(disk, "run")
    code, said = train(disk, "run")
    filling.join()
    assert code == 3, said
    assert NUMBERS.search(said)
    folder = CheckpointFolder(disk / "run/checkpoints")
    assert 0 < folder.load()[1].state["pictures_seen"] < 80
    code, said = train(disk, "run")  # still full
    assert code == 3, said
    (disk / "filler").unlink()
    code, said = train(disk, "run")
    assert code == 0, said
    weights = "model/network/diffusion_pytorch_model.safetensors"
    assert (disk / "run" / weights).read_bytes() == (disk / "unbroken" / weights).read_bytes()


@on_small_disk("8m")
def test_a_run_on_a_full_disk_ends_with_exit_3_before_the_first_step(tmp_path):
    os.environ["TINYDIFFUSION_CACHE"] = str(tmp_path / "cache")
    disk = tmp_path / "disk"
    disk.mkdir()
    fill(tmp_path, 600_000)  # for a checkpoint, but not for three of them
    code, said = train(disk, "run")
    assert code == 3
    assert NUMBERS.search(said)
    assert "pictures  loss" not in said


@on_small_disk("8m")
def test_a_run_on_a_read_only_disk_ends_with_exit_3_and_the_path(tmp_path):
    os.environ["TINYDIFFUSION_CACHE"] = str(tmp_path / "cache")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount(b"tmpfs", bytes(disk), READ_ONLY)
    code, said = train(disk, "run")
    assert code == 3
    assert str(disk / "run") in said
    assert os.strerror(errno.EROFS) in said
    assert len([line for line in said.splitlines() if line.startswith("error: ")]) == 1
