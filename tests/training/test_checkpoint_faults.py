"""A checkpoint survives a death at any file operation, and no damage of any file goes unnoticed.

Rows T2, T3, T4, T6 and T9 of the fault catalogue, and hostile checkpoints (T11); full disks are in
test_disk_full.py.
"""

import os
import shutil
import signal
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
from checkpoint_toys import assert_is, make
from disk_shim import Audit, Disk, Strike, in_child, moments

from tinydiffusion.runtime.signals import StopRequest
from tinydiffusion.training.checkpoints.folder import (
    FILES,
    NAME,
    CheckpointError,
    CheckpointFolder,
    load_checkpoint,
)

ALL_FILES = (*FILES, "manifest.json")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs fork and /proc")


def value_of(path) -> float:
    """The value of the checkpoint at `path`, verified and complete."""
    checkpoint = load_checkpoint(path)
    assert_is(checkpoint, checkpoint.state["value"])
    return checkpoint.state["value"]


# ---- a death at any operation ----------------------------------------------------------------


class Scenario:
    """A folder of checkpoints before the save that is struck."""

    def __init__(self, path, *, saved=0, keep=2, leftovers=False):
        self.path, self.keep, self.saved = path, keep, saved
        folder = self.folder(path / "before")
        folder.path.parent.mkdir(parents=True)
        for number in range(1, saved + 1):
            folder.save(make(float(number)), pictures_seen=number)
        if leftovers:
            for name in (f".tmp-00000{saved + 1}-pictures-{saved + 1}", ".trash-000000-pictures-0"):
                half = shutil.copytree(folder.list()[0], folder.path / name)
                (half / "manifest.json").unlink()
                (half / "ema.safetensors").write_bytes(b"half")

    def folder(self, path) -> CheckpointFolder:
        return CheckpointFolder(path / "run/checkpoints", keep=self.keep)

    def fresh(self) -> CheckpointFolder:
        """The folder as it was before the save, at the place of the last one."""
        place = self.path / "now"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.path / "before", place)
        return self.folder(place)

    def save(self, folder) -> None:
        folder.save(make(self.saved + 1.0), pictures_seen=self.saved + 1)


SCENARIOS = {
    "first": {},
    "later": {"saved": 1},
    "rotation": {"saved": 2, "leftovers": True},
}


@pytest.fixture(scope="module", params=SCENARIOS)
def scenario(request, tmp_path_factory):
    return Scenario(tmp_path_factory.mktemp(request.param), **SCENARIOS[request.param])


@pytest.fixture(scope="module")
def operations(scenario):
    folder = scenario.fresh()
    with Disk(folder.path.parent) as disk:
        scenario.save(folder)
    return disk.operations


def kinds(operations):
    return Counter(operation.kind for operation in operations)


@linux
def test_no_operation_is_overlooked(scenario, operations):
    folder = scenario.fresh()
    with Disk(folder.path.parent) as disk, Audit(folder.path.parent) as audit:
        scenario.save(folder)
    assert disk.operations == operations  # the same every time
    heard = {"open": sum(o.writing for o in operations), **kinds(operations)}
    heard["open"] = sum(operation.writing for operation in operations)
    assert audit.kinds == {kind: heard[kind] for kind in audit.kinds}
    assert audit.kinds.keys() == {"open", "mkdir", "rename", "unlink", "rmdir"} & heard.keys()
    (new,) = (p for p in folder.list() if p.name.endswith(f"-{scenario.saved + 1}"))
    for file in new.iterdir():
        written = [o.size for o in operations if o.kind == "write" and o.path.endswith(file.name)]
        assert sum(written) == file.stat().st_size > 0


@linux
def test_a_death_at_any_operation_leaves_the_new_checkpoint_or_the_one_before(scenario, operations):
    (finished,) = (n for n, o in enumerate(operations) if NAME.fullmatch(Path(o.target).name))
    for number, moment in moments(operations):
        folder = scenario.fresh()
        disk = Disk(folder.path.parent)
        disk.strike = Strike(number, moment, disk.lose_power)
        assert in_child(lambda f=folder, d=disk: _save_on(d, f, scenario)) == 9, (number, moment)
        there = number > finished or (number == finished and moment == "after")
        expected = scenario.saved + there
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing with a final name is damaged
            if expected:
                assert_is(folder.load()[1], float(expected))
            else:
                with pytest.raises(CheckpointError, match="no usable checkpoint"):
                    folder.load()
        assert [value_of(p) for p in folder.list()][-1:] == [expected] * bool(expected)
        with Disk(folder.path.parent):  # only for its speed: it does not sync
            folder.save(make(9.0), pictures_seen=9)
        assert_is(folder.load()[1], 9.0)
        assert [p.name for p in folder.path.iterdir() if not NAME.fullmatch(p.name)] == []
        assert len(folder.list()) == min(expected + 1, scenario.keep)


def _save_on(disk, folder, scenario):
    with disk:
        scenario.save(folder)


@linux
def test_a_save_waits_for_the_disk_before_it_gives_the_name(scenario, operations):
    """Row T4: every file, the folder, the name, the folder above; only then is anything deleted."""
    order = [(o.kind, Path(o.path).name) for o in operations if o.kind in ("fsync", "rename")]
    name = f"00000{scenario.saved + 1}-pictures-{scenario.saved + 1}"
    expected = [
        *[("fsync", file) for file in ALL_FILES],
        ("fsync", f".tmp-{name}"),
        ("rename", f".tmp-{name}"),
        ("fsync", "checkpoints"),
    ]
    at = order.index(expected[0])
    assert order[at : at + len(expected)] == expected
    assert ("fsync", "checkpoints") not in order[:at]
    for file in ALL_FILES:  # all of it was written before it was synced
        calls = [o.kind for o in operations if o.path.endswith(f"{name}/{file}")]
        assert "write" not in calls[calls.index("fsync") :]
    acknowledged = len(order) - order[::-1].index(("fsync", "checkpoints"))
    assert [n for kind, n in order[:acknowledged] if kind == "rename" and NAME.fullmatch(n)] == []


@linux
def test_new_folders_are_known_to_the_disk_too(tmp_path):
    """Row T4: without it a power loss takes the whole folder of the first checkpoint."""
    folder = CheckpointFolder(tmp_path / "runs/mine/checkpoints")
    with Disk(tmp_path) as disk:
        folder.save(make(1.0), pictures_seen=1)
    synced = {o.path for o in disk.operations if o.kind == "fsync"}
    assert {".", "runs", "runs/mine", "runs/mine/checkpoints"} <= synced


# ---- signals while saving --------------------------------------------------------------------


@linux
def test_ctrl_c_at_any_operation_is_complete_or_discarded(scenario, operations):
    """Row T6: in a notebook, where SIGINT raises KeyboardInterrupt."""

    def interrupt():
        raise KeyboardInterrupt

    for number, moment in moments(operations):
        folder = scenario.fresh()
        disk = Disk(folder.path.parent, Strike(number, moment, interrupt))
        with pytest.raises(KeyboardInterrupt), disk:
            scenario.save(folder)
        values = [value_of(path) for path in folder.list()]
        assert values[-1:] in (
            [scenario.saved + 1.0],
            [float(scenario.saved)] * bool(scenario.saved),
        )
        with Disk(folder.path.parent):
            folder.save(make(9.0), pictures_seen=9)
        assert_is(folder.load()[1], 9.0)
        assert [p.name for p in folder.path.iterdir() if not NAME.fullmatch(p.name)] == []


@linux
def test_a_signal_at_any_operation_of_a_run_lets_the_save_end(scenario, operations, capfd):
    """Row T6: under the trainer's handler."""
    for at, moment in moments(operations):
        folder = scenario.fresh()
        disk = Disk(
            folder.path.parent, Strike(at, moment, lambda: os.kill(os.getpid(), signal.SIGINT))
        )
        with StopRequest() as stop, disk:
            scenario.save(folder)
        assert stop.received == "SIGINT"
        assert_is(folder.load()[1], scenario.saved + 1.0)
