"""No damage of any file of a checkpoint goes unnoticed, and a stranger's does no harm.

Rows T9 and T11 of the fault catalogue.
"""

import hashlib
import itertools
import json
import os
import pickle
import re
import shutil
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from checkpoint_toys import assert_is, make

from tinydiffusion.training.checkpoints.folder import FILES, CheckpointError, CheckpointFolder

ALL_FILES = (*FILES, "manifest.json")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs pipes and sparse files")


@cache
def pickled_canary(path) -> bytes:
    """A pickle that makes a file where it is opened."""

    class Canary:
        def __reduce__(self):
            return Path.touch, (Path(path),)

    return pickle.dumps({"weight": Canary()})


@pytest.fixture
def folder(tmp_path):
    """Two checkpoints, the older with value 1.0, the newer with 2.0."""
    folder = CheckpointFolder(tmp_path / "checkpoints", keep=2)
    for value in (1, 2):
        folder.save(make(float(value)), pictures_seen=value)
    return folder


def newest(folder):
    return folder.list()[-1]


def assert_named(folder, name, *, passed_over=True):
    """The newest checkpoint does not load, and every message names `name`."""
    path = newest(folder)
    with pytest.raises(CheckpointError, match=re.escape(name)) as error:
        folder.load(path)  # an explicit path has no stand-in
    assert path.name in str(error.value)
    if passed_over:
        with pytest.warns(UserWarning, match=re.escape(name)) as warned:
            found, checkpoint = folder.load()
        assert path.name in str(warned[0].message)
        assert found.name == "000001-pictures-1"
        assert_is(checkpoint, 1.0)


@pytest.mark.parametrize("name", ALL_FILES)
def test_every_truncation_is_named(folder, name):
    file = newest(folder) / name
    data = file.read_bytes()
    for length in (*range(0, len(data), 7), len(data) - 1):
        file.write_bytes(data[:length])
        assert_named(folder, name, passed_over=length < 8)
    file.write_bytes(data + b" ")
    if name != "manifest.json":  # JSON may end in a space, and says the same
        assert_named(folder, name)


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_flipped_bit_in_any_byte_is_named(folder, name):
    file = newest(folder) / name
    data = file.read_bytes()
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        file.write_bytes(flipped)
        # a flip in the manifest may make another file's entry wrong: that file is named
        said = name if name != "manifest.json" else "000002-pictures-2"
        assert_named(folder, said, passed_over=place % 50 == 0)


@pytest.mark.parametrize("name", ALL_FILES)
def test_zeros_an_empty_file_no_file_and_something_else_are_named(folder, name):
    file = newest(folder) / name
    size = file.stat().st_size
    for data in (bytes(size), b"", bytes(2**20)):
        file.write_bytes(data)
        assert_named(folder, name)
    file.unlink()
    assert_named(folder, name)
    file.mkdir()
    assert_named(folder, name)


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(ALL_FILES, 2)))
def test_swapped_files_are_named(folder, one, other):
    left, right = newest(folder) / one, newest(folder) / other
    between = left.with_name("between")
    left.rename(between)
    right.rename(left)
    between.rename(right)
    with pytest.raises(CheckpointError) as error:
        folder.load(newest(folder))
    assert one in str(error.value) or other in str(error.value)
    assert_named(folder, newest(folder).name)


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_file_of_another_checkpoint_is_named(folder, name):
    older, newer = folder.list()
    shutil.copy(older / name, newer / name)
    assert_named(folder, newer.name if name == "manifest.json" else name)


def test_an_extra_file_or_folder_is_named(folder):
    (newest(folder) / "more.pt").write_bytes(b"what is this")
    assert_named(folder, "more.pt")
    (newest(folder) / "more.pt").unlink()
    (newest(folder) / "more").mkdir()
    assert_named(folder, "more")


def test_all_damaged_is_an_error_that_is_no_fresh_start(folder):
    for path in folder.list():
        (path / "ema.safetensors").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="damaged") as warned,
        pytest.raises(CheckpointError, match="no usable checkpoint"),
    ):
        folder.load()
    assert ["000002" in str(warned[0].message), "000001" in str(warned[1].message)] == [True, True]


def edited(folder, edit) -> None:
    """Change the manifest's content."""
    file = newest(folder) / "manifest.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(edit(content) or content))


MODEL = "model.safetensors"
EDITS = {
    "format": lambda m: m.update(format=99),
    "no format": lambda m: m.pop("format") and None,
    "no files": lambda m: m.pop("files") and None,
    "a list": lambda m: [m],
    "a number": lambda m: 7,
    "a file less": lambda m: m["files"].pop(MODEL) and None,
    "a file more": lambda m: m["files"].update({"more": {"size": 0, "sha256": ""}}),
    "a path": lambda m: m["files"].update({"../../x": m["files"].pop(MODEL)}),
    "another size": lambda m: m["files"][MODEL].update(size=m["files"][MODEL]["size"] - 1),
    "no number": lambda m: m["files"][MODEL].update(size="12"),
    "negative": lambda m: m["files"][MODEL].update(size=-1),
    "another sum": lambda m: m["files"][MODEL].update(sha256="0" * 64),
    "no sum": lambda m: m["files"][MODEL].update(sha256=None),
    "no entry": lambda m: m["files"].update({MODEL: None}),
}


@pytest.mark.parametrize(
    "edit",
    EDITS,
)
def test_an_edited_manifest_is_named(folder, edit):
    edited(folder, EDITS[edit])
    assert_named(folder, newest(folder).name)


# ---- checkpoints from strangers: the manifest agrees with what is there ------------------------


def sealed(folder, name, data) -> None:
    """Put `data` into the newest checkpoint under `name`, and make the manifest agree."""
    (newest(folder) / name).write_bytes(data)
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edited(folder, lambda m: m["files"].update({name: entry}))


def test_the_canary_sings_where_it_is_unpickled(tmp_path):
    pickle.loads(pickled_canary(tmp_path / "sung"))
    assert (tmp_path / "sung").exists()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_is_never_executed(folder, name, kind, tmp_path):
    data = pickled_canary(tmp_path / "sung")
    if kind == "torch":
        torch.save({"weight": torch.ones(2)}, tmp_path / "saved.pt")
        data = (tmp_path / "saved.pt").read_bytes().replace(b"weight", b"weight") + data
    sealed(folder, name, data)
    assert_named(folder, newest(folder).name)
    assert not (tmp_path / "sung").exists()


def header(text: bytes, length: int | None = None) -> bytes:
    """A safetensors file; its header is all of the text up to the last brace."""
    length = len(text.rstrip(b"\0")) if length is None else length
    return length.to_bytes(8, "little") + text


@pytest.mark.parametrize("name", FILES[:4])
@pytest.mark.parametrize(
    "data",
    [
        header(b"{}", 2**63 - 1),
        header(b"{}", 2**40),
        header(b"[" * 100_000),
        header(b'{"w": {"dtype": "F32", "shape": [4294967296], "data_offsets": [0, 4]}}\0\0\0\0'),
        header(b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4294967296]}}'),
        header(b'{"w": {"dtype": "O", "shape": [1], "data_offsets": [0, 4]}}\0\0\0\0'),
    ],
    ids=["header 2^63", "header 1 TB", "nested", "shape 16 GB", "offsets 4 GB", "objects"],
)  # fmt: skip
def test_broken_tensors_are_named(folder, name, data):
    sealed(folder, name, data)
    assert_named(folder, newest(folder).name)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xff", b"[" * 100_000, b'{"a": ',
        b"7", b"[]", b"null",
    ],
    ids=["empty", "bytes", "nested", "cut", "number", "list", "null"],
)  # fmt: skip
def test_a_state_that_is_no_object_is_named(folder, data):
    sealed(folder, "state.json", data)
    assert_named(folder, newest(folder).name)


def test_a_nested_manifest_is_named(folder):
    (newest(folder) / "manifest.json").write_text("[" * 100_000)
    assert_named(folder, "manifest.json")


@linux
@pytest.mark.parametrize("name", ALL_FILES)
def test_a_file_of_a_terabyte_is_named_before_it_is_read(folder, name):
    os.truncate(newest(folder) / name, 2**40)  # sparse: takes no space
    assert_named(folder, name)


@linux
@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ALL_FILES)
def test_a_pipe_is_named_and_not_waited_for(folder, name):
    (newest(folder) / name).unlink()
    os.mkfifo(newest(folder) / name)
    assert_named(folder, name)


@linux
@pytest.mark.parametrize("name", FILES)
def test_a_link_out_of_the_folder_is_named(folder, name, tmp_path):
    file = newest(folder) / name
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert_named(folder, name)
