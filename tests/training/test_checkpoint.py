"""A checkpoint is complete or not there, whatever moment the process dies at."""

import json
import os
import sys
import warnings
from pathlib import Path

import pytest
import torch

from tinydiffusion import durable
from tinydiffusion.errors import NonFiniteError
from tinydiffusion.training import checkpoint as module
from tinydiffusion.training.checkpoint import (
    FILES,
    Checkpoint,
    CheckpointError,
    CheckpointFolder,
    difference,
    load_checkpoint,
)


def make(value=1.0):
    return Checkpoint(
        model={"weight": torch.full((2, 3), value)},
        ema={"weight": torch.full((2, 3), value / 2)},
        optimizer={"weight/step": torch.tensor(value)},
        state={"value": value, "identity": {"a": {"b": 1}}},
    )


def assert_is(checkpoint, value):
    for part in ("model", "ema", "optimizer"):
        torch.testing.assert_close(getattr(checkpoint, part), getattr(make(value), part))
    assert checkpoint.state == make(value).state


@pytest.fixture
def folder(tmp_path):
    return CheckpointFolder(tmp_path / "checkpoints", keep=2)


def test_round_trip_and_names(folder):
    path = folder.save(make(3.0), pictures_seen=12800)
    assert path.name == "000001-pictures-12800"
    assert sorted(p.name for p in path.iterdir()) == sorted([*FILES, "manifest.json"])
    found, checkpoint = folder.load()
    assert found == path
    assert_is(checkpoint, 3.0)


def test_rotation_keeps_the_last_saved(folder):
    for value, pictures_seen in enumerate((100, 200, 150)):  # 150: resumed from an older one
        folder.save(make(float(value)), pictures_seen=pictures_seen)
    assert [p.name for p in folder.list()] == ["000002-pictures-200", "000003-pictures-150"]
    assert len(list(folder.path.iterdir())) == 2
    assert_is(folder.load()[1], 2.0)


def test_memory_layout_does_not_matter(folder):
    weight = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    folder.save(make()._replace(model={"weight": weight}), pictures_seen=1)
    torch.testing.assert_close(folder.load()[1].model["weight"], weight)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "empty"])
def test_damage_is_named_and_the_one_before_is_used(folder, name, damage):
    folder.save(make(1.0), pictures_seen=1)
    path = folder.save(make(2.0), pictures_seen=2)
    _damage(path / name, damage)
    with pytest.warns(UserWarning, match=f"000002-pictures-2.{name}.*trying the one before"):
        found, checkpoint = folder.load()
    assert found.name == "000001-pictures-1"
    assert_is(checkpoint, 1.0)
    with pytest.raises(CheckpointError, match=name):  # an explicit path has no stand-in
        folder.load(path)


def _damage(path, damage):
    data = path.read_bytes()
    if damage == "delete":
        path.unlink()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 0x80]) + data[middle + 1 :]
        path.write_bytes({"truncate": data[:-1], "flip": flipped, "empty": b""}[damage])


def test_none_left_is_an_error_not_a_fresh_start(folder):
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        folder.load()
    _damage(folder.save(make(), pictures_seen=1) / "state.json", "truncate")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(CheckpointError, match="no usable checkpoint"),
    ):
        folder.load()


def test_another_format_is_refused(folder):
    path = folder.save(make(), pictures_seen=1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(CheckpointError, match="of format 99, this version reads 1"):
        load_checkpoint(path)


@pytest.mark.parametrize("part", ["model", "ema", "optimizer"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_tensors_are_never_written(folder, part, bad):
    tensors = {"good": torch.ones(2), "broken": torch.tensor([0.0, bad])}
    with pytest.raises(NonFiniteError, match=f"{part} tensor 'broken'"):
        folder.save(make()._replace(**{part: tensors}), pictures_seen=1)
    assert folder.list() == []


def test_leftovers_are_ignored_and_swept(folder):
    folder.save(make(1.0), pictures_seen=1)
    (folder.path / ".tmp-000002-pictures-2").mkdir()
    (folder.path / ".trash-000000-pictures-0").mkdir()
    (folder.path / "old-000009-pictures-9").mkdir()
    assert_is(folder.load()[1], 1.0)
    folder.save(make(2.0), pictures_seen=2)
    names = {p.name for p in folder.path.iterdir()}
    assert names == {"000001-pictures-1", "000002-pictures-2", "old-000009-pictures-9"}


class DiesAt:
    """Ends the process, as a kill would, at the k-th call that touches the disk."""

    def __init__(self, k):
        self.left = k

    def before(self, function):
        def counted(*args, **options):
            self.left -= 1
            if self.left < 0:
                os._exit(9)
            return function(*args, **options)

        return counted


def _save_and_die_at(folder, k):
    """In a child process: save, dying at the k-th call. The exit code."""
    child = os.fork()
    if child == 0:
        dies = DiesAt(k)
        path_type = type(folder.path)
        for owner, name in (
            (durable.os, "fsync"),
            (module.shutil, "rmtree"),
            (path_type, "mkdir"),
            (path_type, "open"),
            (path_type, "rename"),
        ):
            setattr(owner, name, dies.before(getattr(owner, name)))
        folder.save(make(2.0), pictures_seen=2)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_a_kill_at_any_call_leaves_a_usable_checkpoint(tmp_path):
    codes = []
    while not codes or codes[-1] != 0:
        folder = CheckpointFolder(tmp_path / str(len(codes)), keep=1)
        folder.save(make(1.0), pictures_seen=1)
        codes.append(_save_and_die_at(folder, len(codes)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing that has a finished name is damaged
            path, checkpoint = folder.load()
        assert_is(checkpoint, 2.0 if path.name.endswith("-2") else 1.0)
        for finished in folder.list():
            load_checkpoint(finished)
        folder.save(make(3.0), pictures_seen=3)
        assert_is(folder.load()[1], 3.0)
        assert len(list(folder.path.iterdir())) == 1
    assert codes == [9] * (len(codes) - 1) + [0]
    assert len(codes) > 15


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_files_are_synced_before_the_rename_and_the_folder_after(folder, monkeypatch):
    calls = []
    fsync, rename = os.fsync, type(folder.path).rename

    def record_fsync(descriptor):
        calls.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def record_rename(path, target):
        calls.append("rename")
        return rename(path, target)

    monkeypatch.setattr(durable.os, "fsync", record_fsync)
    monkeypatch.setattr(type(folder.path), "rename", record_rename)
    folder.save(make(), pictures_seen=1)
    unfinished = ".tmp-000001-pictures-1"
    assert calls == [*FILES, "manifest.json", unfinished, "rename", "checkpoints"]


def test_difference_names_old_and_new():
    old = {"model": {"channels": 8, "depth": 2}, "data": "x"}
    new = {"model": {"channels": 16, "depth": 2}, "seed": 0}
    assert difference(old, new) == {
        "data": "'x' -> '(absent)'",
        "model.channels": "8 -> 16",
        "seed": "'(absent)' -> 0",
    }
    assert difference(old, old) == {}
