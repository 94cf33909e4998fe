"""Proves that tar shards equal a folder of the same pictures, and that every fault is named."""

import bz2
import gzip
import lzma
import os
import pickle
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tar_toys import (
    END,
    FORMATS,
    GOOD,
    captions,
    entry,
    fails,
    header,
    ids,
    load,
    members,
    pax,
    picture,
    sample,
    skips,
    write,
)

from tinydiffusion.datasets.folder import FolderDataset
from tinydiffusion.datasets.shards import ShardsDataset
from tinydiffusion.datasets.tar import TarDataset
from tinydiffusion.shards.headers import BLOCK, Fault

# ---- what is loaded --------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Pictures of several kinds, with captions of both suffixes and one folder down."""
    root = tmp_path / "pictures"
    (root / "sub").mkdir(parents=True)
    kinds = {"a.png": "PNG", "b.v2.jpg": "JPEG", "c.webp": "WEBP", "sub/d.JPEG": "JPEG"}
    for number, (name, kind) in enumerate(kinds.items()):
        path = root / name
        path.write_bytes(picture((60 * number, 20, 30), (8 + number, 9), kind))
        suffix = (".txt", ".caption")[number % 2]
        path.with_suffix(suffix).write_text(f" caption {number}, blå\n", encoding="utf-8-sig")
    return root


@pytest.mark.parametrize("kind", FORMATS)
def test_shards_equal_the_folder_that_they_were_made_of(folder, tmp_path, kind):
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards/0.tar", "w", format=FORMATS[kind]) as archive:
        for path in sorted(folder.rglob("*")):
            archive.add(path, f"./{path.relative_to(folder)}", recursive=False)
    shards, files = load(tmp_path / "shards"), FolderDataset(path=folder, size=8)
    assert shards.skipped == files.skipped == []
    assert len(shards) == len(files) == 4
    assert ids(shards) == ["0.tar/a", "0.tar/b.v2", "0.tar/c", "0.tar/sub/d"]
    for i in range(len(files)):
        torch.testing.assert_close(shards[i]["image"], files[i]["image"], rtol=0, atol=0)
        assert shards[i]["caption"] == files[i]["caption"]


def test_members_of_a_name_may_stand_anywhere(tmp_path):
    write(
        tmp_path / "s.tar",
        entry("b.txt", b"bee"),
        entry("a.png", picture()),
        GOOD,
        entry("b.png", picture()),
        entry("a.json", b'{"text": ["ay", " "]}'),
    )
    dataset = load(tmp_path / "s.tar")
    assert ids(dataset) == ["s.tar/b", "s.tar/a", *(f"s.tar/good{i}" for i in (1, 2, 3))]
    assert captions(dataset)[:2] == ["bee", ["ay"]]
    assert dataset.skipped == []


def test_a_text_file_goes_before_json(tmp_path):
    parts = [entry("a.json", b'{"caption": "long"}'), sample("a", caption="short")]
    assert captions(load(write(tmp_path / "s.tar", *parts))) == ["short"]
    parts = [entry("a.json", b'{"caption": "long"}'), entry("a.png", picture())]
    path = write(tmp_path / "s.tar", *parts)
    assert captions(load(path, caption_column="caption")) == ["long"]
    fails(path, "1 of 1 .*no 'text'; it has 'caption'")


def test_a_shard_a_folder_and_a_pattern(tmp_path):
    for name in ("p2/1.tar", "p1/2.tar", "p1/1.tar", "p1/._1.tar", "p1/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, sample("k"))
    assert ids(load(tmp_path / "p1/2.tar")) == ["2.tar/k"]
    assert ids(load(tmp_path / "p1")) == ["1.tar/k", "2.tar/k"]
    pattern = str(tmp_path / "p?/*.tar")
    assert ids(load(pattern)) == ["p1/1.tar/k", "p1/2.tar/k", "p2/1.tar/k"]
    assert ids(load(pattern, limit=2)) == ["p1/1.tar/k", "p1/2.tar/k"]
    fails(tmp_path / "p3/*.tar", "no shards in .*p3")
    fails(tmp_path / "p3/1.tar", "no such shard.*p3")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_shards_are_refused_before_they_are_unpacked(tmp_path, pack):
    (tmp_path / "s.tar").write_bytes(pack(GOOD + END))
    fails(tmp_path, r"s\.tar is compressed \((gzip|bzip2|xz)\); unpack it")


def test_a_pipe_named_like_a_shard_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "s.tar")
    fails(tmp_path, "not a file")


# ---- what is skipped -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"text": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'["a"]', "must be an object"),
        (b'{"txet": "a"}', r"no 'text' \(did you mean 'txet'\?\)"),
        (b'{"text": 3}', "must be text or a list of texts, got 3"),
        (b'{"text": ["a", null]}', "must be text"),
        (b'{"text": null}', "without caption"),
        (b'{"text": "\xff"}', "not UTF-8 at byte 10"),
        (b'{"text": "a"}\0', "NUL"),
        (b'{"text": "' + b"a" * (1 << 20) + b'"}', "too large: a.json has 1048588 bytes"),
    ],
)
def test_faults_of_a_caption_cost_its_picture_alone(tmp_path, content, reason):
    skipped = skips(tmp_path, entry("a.png", picture()), entry("a.json", content))
    assert list(skipped) == ["s.tar/a"]
    assert re.search(reason, skipped["s.tar/a"])


def test_incomplete_and_unreadable_samples_are_named(tmp_path):
    skipped = skips(
        tmp_path,
        entry("no-caption.png", picture()),
        entry("no-picture.txt", b"alone"),
        entry("cut.png", picture()[:40]) + entry("cut.txt", b"cut"),
    )
    assert skipped["s.tar/no-caption"] == "without caption"
    assert skipped["s.tar/no-picture"] == "a caption without a picture"
    assert skipped["s.tar/cut"].startswith("unreadable")


def test_of_duplicates_the_first_counts(tmp_path):
    dataset = load(
        write(
            tmp_path / "s.tar",
            sample("a", (1, 2, 3), "first"),
            sample("a", (4, 5, 6), "second"),
            entry("./a.jpg", picture()),
            GOOD,
        )
    )
    assert dataset[0]["image"][:, 0, 0].tolist() == [1, 2, 3]
    assert dataset[0]["caption"] == "first"
    assert [path for path, _ in dataset.skipped] == ["s.tar/a.png", "s.tar/a.txt", "s.tar/a.jpg"]
    assert dataset.skipped[2].reason == "a second picture of its name: a.png comes first"


class Canary:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('canary').touch()",))


def test_nothing_is_unpickled_and_extras_are_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bomb = pickle.dumps(Canary())
    suffixes = ("pickle", "pkl", "pyd", "pth", "pt", "npy", "npz", "cls", "ten", "mp", "py")
    extras = b"".join(entry(f"good1.{suffix}", bomb) for suffix in suffixes)
    skipped = skips(
        tmp_path,
        extras,
        entry("._good1.png", bomb),
        entry("good2.json", bomb),
        entry("x.png", bomb),
        entry("x.txt", b"x"),
    )
    assert skipped.pop("s.tar/x").startswith("unreadable")
    assert skipped == {"s.tar/good1.pickle": "not a picture or caption: 12 members"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.tar"]
    pickle.loads(bomb)
    assert Path("canary").exists(), "the bomb is a dud"


# ---- cut and damaged shards ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "where"),
    [
        (len(GOOD), f"at byte {len(GOOD)}, no end mark"),
        (len(GOOD) + 100, f"at byte {len(GOOD) + 100}, in a header"),
        (len(GOOD) + 520, f"at byte {len(GOOD) + 520}, z.png would end at byte"),
        (len(GOOD + sample("z")) - 500, "in a header|no end mark"),
        (len(GOOD + sample("z")) + BLOCK, "in the end mark"),
    ],
    ids=["between members", "in a header", "in the data", "in the padding", "in the end mark"],
)
def test_of_a_cut_shard_all_before_the_cut_is_loaded(tmp_path, keep, where):
    whole = GOOD + sample("z")
    path = write(tmp_path / "s.tar", (whole + END)[:keep], end=b"")
    dataset = load(path)
    assert len(dataset) == (4 if keep > len(whole) - BLOCK else 3)
    (path, reason), *others = dataset.skipped
    assert path == "s.tar"
    assert reason.startswith("shard cut: at byte ")
    assert re.search(where, reason)
    assert others == []
    assert load(tmp_path / "s.tar", limit=1).skipped == [(path, reason)]


def test_every_cut_is_noticed(tmp_path):
    whole = GOOD + END
    for keep in range(0, len(whole), 97):
        faults = [entry for entry in members(whole[:keep]) if isinstance(entry, Fault)]
        assert [fault.reason.partition(":")[0] for fault in faults] == ["cut"], keep


def test_a_bad_checksum_is_named_with_its_byte(tmp_path):
    bad = bytearray(header("a.png", 5))
    bad[3] ^= 1
    skipped = skips(tmp_path, bytes(bad), sample("z"))  # what follows is not trusted
    assert skipped == {"s.tar": f"shard damaged: at byte {len(GOOD)}, bad checksum"}
    fails(write(tmp_path / "s.tar", b"<html>" * 200), "s.tar: at byte 0, invalid header")
    fails(write(tmp_path / "s.tar", end=b""), "s.tar: at byte 0, no end mark")


def test_joined_archives_are_named(tmp_path):
    reason = skips(tmp_path, END, sample("z"))["s.tar"]
    assert reason.startswith("shard goes on behind its end mark: ")
    assert skips(tmp_path, end=bytes(20 * BLOCK)) == {}
    assert list(skips(tmp_path, end=bytes(2 << 20))) == ["s.tar"]


# ---- chance and size ---------------------------------------------------------------------------


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_changed_bytes_end_in_data_or_in_a_message(tmp_path, data):
    whole = bytearray(
        sample("a")
        + pax(path=b"b.png")
        + entry("x", picture())
        + entry("b.json", b'{"text": "b"}')
        + END
    )
    edits = st.tuples(st.integers(0, len(whole) - 1), st.binary(min_size=1, max_size=20))
    for place, new in data.draw(st.lists(edits, max_size=4)):
        whole[place : place + len(new)] = new
    fixed = data.draw(st.booleans())
    for start in range(0, len(whole) - BLOCK, BLOCK) if fixed else ():
        if whole[start + 257 : start + 262] == b"ustar":  # checksums right, contents absurd
            whole[start + 148 : start + 156] = b" " * 8
            whole[start + 148 : start + 156] = b"%06o\0 " % sum(whole[start : start + BLOCK])
    path = write(tmp_path / "s.tar", whole, end=b"")
    started, message = time.monotonic(), ""
    try:
        dataset = load(path)
        assert {dataset[i]["image"].shape for i in range(len(dataset))} == {(3, 8, 8)}
    except ValueError as error:
        message = str(error)
    assert "\n" not in message
    assert time.monotonic() - started < 5


MEASURE = """
import re, sys
from pathlib import Path
from tinydiffusion.datasets.tar import TarDataset
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", STATUS.read_text())[1]) / 1024
STATUS = Path("/proc/self/status")
TarDataset(path=sys.argv[1], size=8)
before = peak()
dataset = TarDataset(path=sys.argv[2], size=8)
print(len(dataset), len(dataset.skipped), peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux")
def test_memory_stays_flat_beside_large_members(tmp_path):
    with (tmp_path / "large.tar").open("wb") as file:
        file.write(entry("a.pth", os.urandom(1 << 20) * 60))
        for i in range(2000):
            padded = picture((i % 256, i // 256, 0)) + bytes(30_000)
            file.write(entry(f"{i:04}.png", padded) + entry(f"{i:04}.txt", b"a picture"))
        file.write(END)
    assert (tmp_path / "large.tar").stat().st_size > 120 << 20
    small = write(tmp_path / "small.tar", GOOD)
    command = [sys.executable, "-c", MEASURE, small, tmp_path / "large.tar"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    loaded, skipped, mebibytes = output.split()
    assert (loaded, skipped) == ("2000", "1")
    assert 0 < float(mebibytes) < 32


# ---- ranges, and names of two parts ----------------------------------------------------------


def write_range(folder, numbers):
    for number in numbers:
        write(folder / f"{number:03}.tar", sample(f"p{number}"))


@pytest.mark.parametrize("plugin", [TarDataset, ShardsDataset])
def test_a_range_of_shards_on_this_disk(tmp_path, plugin):
    write_range(tmp_path, range(5))
    dataset = plugin(path=str(tmp_path / "{001..003}.tar"), size=8)
    ids = [dataset[i]["id"] for i in range(len(dataset))]
    assert ids == [f"00{n}.tar/p{n}" for n in (1, 2, 3)]


@pytest.mark.parametrize("plugin", [TarDataset, ShardsDataset])
def test_missing_shards_of_a_range_are_named(tmp_path, plugin):
    write_range(tmp_path, [0, 2])
    with pytest.raises(ValueError, match=r"1 of 3 shards .* missing, the first is .*001\.tar"):
        plugin(path=str(tmp_path / "{000..002}.tar"), size=8)
    with pytest.raises(ValueError, match="must go up"):
        plugin(path=str(tmp_path / "{002..000}.tar"), size=8)


@pytest.mark.parametrize("plugin", [TarDataset, ShardsDataset])
def test_names_of_two_parts_are_joined_where_there_is_one_way(tmp_path, plugin):
    two = [entry("d/x.output.txt", b"two parts"), entry("d/x.input.png", picture())]
    write(tmp_path / "a.tar", *two, sample("whole.1"), sample("whole.2"))
    dataset = plugin(path=tmp_path / "a.tar", size=8)
    found = {dataset[i]["id"]: dataset[i]["caption"] for i in range(len(dataset))}
    assert found == {
        "a.tar/d/x": "two parts",
        "a.tar/whole.1": "a picture",
        "a.tar/whole.2": "a picture",
    }


@pytest.mark.parametrize(
    "names",
    [
        ["x.a.png", "x.b.png", "x.c.txt"],
        ["x.a.png", "x.b.txt", "x.c.txt"],
        ["x.a.png", "x.b.txt", "x.c.json"],
    ],
)
def test_names_that_could_be_joined_in_several_ways_are_named(tmp_path, names):
    content = {"png": picture(), "txt": b"words", "json": b'{"text": "words"}'}
    entries = [entry(name, content[name.rpartition(".")[2]]) for name in names]
    good = [sample(f"good{n}") for n in range(4)]
    write(tmp_path / "a.tar", *good, *entries)
    dataset = TarDataset(path=tmp_path / "a.tar", size=8)
    assert len(dataset) == 4
    assert "3 ambiguous name (first a.tar/x.a: " in dataset.describe_skipped()
