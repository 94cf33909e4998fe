"""Shards at any address equal those on disk, and are copied once into a folder that stays small."""

import errno
import os
import subprocess
import sys

import fsspec
import pytest
import torch
from shard_toys import assert_same, ids_of, load, noisy, write_shards
from tar_toys import END

from tinydiffusion.registry import PluginError
from tinydiffusion.runtime.errors import DiskFullError
from tinydiffusion.shards import copies as shards_copies
from tinydiffusion.shards.addresses import find_set
from tinydiffusion.shards.copies import ShardError

COUNTS = (5, 9, 3)
URL = "memory://bucket/set"


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """The same shards in a folder and at an address."""
    monkeypatch.setattr(shards_copies, "WAITS", (0.0, 0.0))
    fs = fsspec.filesystem("memory")
    folder = write_shards(tmp_path / "set", *COUNTS)
    for shard in folder.iterdir():
        fs.pipe_file(f"/bucket/set/{shard.name}", shard.read_bytes())
    yield fs
    fs.store.clear()


@pytest.fixture
def copies(cache_folder):
    return cache_folder.parent / "shards"


@pytest.mark.parametrize(
    ("url", "count"),
    [("", 17), ("/", 17), ("/*.tar", 17), ("/1.tar", 9), ("/{0..1}.tar", 14), ("/[02].tar", 8)],
)
def test_an_address_is_what_a_path_is(memory, tmp_path, url, count):
    assert len(load(URL + url)) == count
    if url == "/*.tar":
        here, there = load(tmp_path / "set", window=6), load(URL + url, window=6)
        assert ids_of(here, 1) == ids_of(there, 1)
        for i in range(count):
            assert_same(here[i], there[i])


def test_braces_count_with_zeros(memory):
    memory.pipe_file("/bucket/set/a-009.tar", noisy("x", 1) + END)
    memory.pipe_file("/bucket/set/a-010.tar", noisy("x", 1) + END)
    names = [shard.name for shard in find_set(URL + "/a-{009..010}.tar").shards]
    assert names == ["a-009.tar", "a-010.tar"]
    with pytest.raises(ValueError, match="cannot read memory"):
        load(URL + "/a-{009..011}.tar")


@pytest.mark.parametrize(
    ("url", "kind", "message"),
    [
        (URL + "/none", ValueError, "cannot read memory"),
        (URL + "/none/*.tar", ValueError, "no shards at"),
        (URL + "/9.tar", ValueError, "cannot read memory"),
        ("nosuch://a/b", ValueError, "Protocol not known"),
        ("lacking://host/b", PluginError, "cannot read lacking.*: pip install it"),
    ],
)
def test_wrong_addresses_are_named(memory, url, kind, message):
    fsspec.register_implementation(
        "lacking", "no_such_package.FileSystem", clobber=True, errtxt="pip install it"
    )
    with pytest.raises(kind, match=message) as caught:
        load(url)
    assert "\n" not in str(caught.value)


def test_a_shard_is_copied_once_and_its_headers_are_remembered(memory, copies, monkeypatch):
    fetched = []
    get_file = type(memory).get_file
    monkeypatch.setattr(
        type(memory), "get_file", lambda fs, *a, **k: fetched.append(a[0]) or get_file(fs, *a, **k)
    )
    assert len(set(ids_of(load(URL)))) == len(set(ids_of(load(URL), 1))) == 17
    assert sorted(fetched) == [f"/bucket/set/{i}.tar" for i in range(3)]
    assert len(list(copies.glob("*.tar"))) == 3
    memory.pipe_file("/bucket/set/1.tar", noisy("x", 1) + END)
    assert len(load(URL)) == 9
    assert len(fetched) == 4


def test_copies_stay_within_their_bound(memory, copies, tmp_path):
    sizes = sorted(shard.stat().st_size for shard in (tmp_path / "set").iterdir())
    with pytest.raises(ValueError, match=r"touches up to 3 shards.*Raise it or lower window"):
        load(URL, cache_gb=(sum(sizes) - 1) / 1e9)
    for number in range(3, 12):
        memory.pipe_file(f"/bucket/set/{number}.tar", (tmp_path / "set/2.tar").read_bytes())
    bound = sum(sizes) + sizes[0]
    dataset = load(URL, window=3, cache_gb=bound / 1e9)
    for epoch in range(2):
        order = []
        for place in range(len(dataset)):
            order += ids_of(dataset, epoch, [place])
            assert sum(f.stat().st_size for f in copies.glob("*.tar")) <= bound
        assert len(set(order)) == len(order) == 17 + 9 * 3
    assert [f for f in copies.iterdir() if f.name.startswith(".tmp")] == []


def test_the_copy_that_was_read_longest_ago_goes_first(memory, copies, tmp_path):
    one = (tmp_path / "set/0.tar").stat().st_size
    for number in range(4):
        memory.pipe_file(f"/bucket/few/{number}.tar", (tmp_path / "set/0.tar").read_bytes())
    cache = shards_copies.ShardCopies(3 * one)
    shards = find_set("memory://bucket/few").shards
    for number, age in ((0, 30), (1, 20), (2, 10)):
        cache.open(shards[number]).close()
        newest = max(copies.glob("*.tar"), key=lambda file: file.stat().st_mtime)
        os.utime(newest, (newest.stat().st_mtime - age,) * 2)
    cache.open(shards[0]).close()  # read again: now 1 is the oldest
    there = {file: file.stat().st_mtime for file in copies.glob("*.tar")}
    cache.open(shards[3]).close()
    assert set(there) - set(copies.glob("*.tar")) == {min(there, key=there.__getitem__)}


def test_a_passing_fault_is_tried_again_and_a_lasting_one_named(memory, monkeypatch):
    faults = [OSError(errno.ECONNRESET, "Connection reset"), TimeoutError("timed out")]
    get_file = type(memory).get_file

    def flaky(fs, *args, **options):
        if faults:
            raise faults.pop()
        return get_file(fs, *args, **options)

    monkeypatch.setattr(type(memory), "get_file", flaky)
    assert len(load(URL + "/0.tar")) == 5
    faults += [OSError(errno.ECONNRESET, "Connection reset")] * 3
    with pytest.raises(ShardError, match=r"cannot read memory.*1\.tar: Connection reset"):
        load(URL + "/1.tar")
    faults[:] = [OSError(errno.ENOSPC, "No space left on device")] * 3
    with pytest.raises(DiskFullError, match=r"no space for .* lower cache_gb"):
        load(URL + "/2.tar")


PROCESSES = """
import os, sys
import fsspec, torch
from pathlib import Path
from tinydiffusion.datasets.shards import ShardsDataset

fs, log = fsspec.filesystem("memory"), Path(sys.argv[2])
for shard in Path(sys.argv[1]).iterdir():
    fs.pipe_file(f"/bucket/set/{shard.name}", shard.read_bytes())
get_file = type(fs).get_file

def counted(self, *args, **options):
    with log.open("a") as file:
        file.write(args[0] + chr(10))
    return get_file(self, *args, **options)

type(fs).get_file = counted
expected = ShardsDataset(path=sys.argv[1], size=8, window=10)
children = []
for rank in range(4):
    if not (child := os.fork()):
        dataset = ShardsDataset(path="memory://bucket/set", size=8, window=10)
        generator = torch.Generator()
        for place in range(rank, len(dataset), 4):
            image = dataset.visit(0, place, generator)["image"]
            assert (image == expected.visit(0, place, generator)["image"]).all()
        os._exit(0)
    children.append(child)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_processes_copy_each_shard_once_between_them(tmp_path):
    folder = write_shards(tmp_path / "set", *[20] * 6)
    command = [sys.executable, "-c", PROCESSES, folder, tmp_path / "log"]
    subprocess.run(command, check=True, timeout=60)
    fetched = (tmp_path / "log").read_text().split()
    assert sorted(fetched) == [f"/bucket/set/{i}.tar" for i in range(6)]


def test_a_cut_copy_is_named(memory, tmp_path):
    whole = (tmp_path / "set/1.tar").read_bytes()
    memory.pipe_file("/bucket/set/1.tar", whole[: len(whole) // 2])
    dataset = load(URL)
    assert [item.path for item in dataset.skipped if "cut: at byte" in item.reason] == ["1.tar"]
    assert 8 < len(dataset) < 17
    torch.testing.assert_close(dataset[6]["image"], load(tmp_path / "set")[6]["image"])
