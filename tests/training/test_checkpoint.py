"""A checkpoint is complete or not there, whatever moment the process dies at."""

import json

import pytest
import torch

from tinydiffusion.runtime.errors import NonFiniteError
from tinydiffusion.training.checkpoints.folder import (
    FILES,
    PARTS,
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
        objective={"codebook": torch.full((2,), value)},
        state={"value": value, "identity": {"a": {"b": 1}}},
    )


def assert_is(checkpoint, value):
    for part in PARTS:
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
    with pytest.raises(CheckpointError, match="of format 99, this version reads 2"):
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


def test_difference_names_old_and_new():
    old = {"model": {"channels": 8, "depth": 2}, "data": "x"}
    new = {"model": {"channels": 16, "depth": 2}, "seed": 0}
    assert difference(old, new) == {
        "data": "'x' -> '(absent)'",
        "model.channels": "8 -> 16",
        "seed": "'(absent)' -> 0",
    }
    assert difference(old, old) == {}
