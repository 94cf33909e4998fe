"""Shards equal `tar`, come in an order that processes and stops do not change, and name faults."""

import gc
import io
import json
import os
import pickle
import re
import tarfile
import tracemalloc
import warnings
from pathlib import Path

import pytest
import torch
from picture_toys import encode, noise
from shard_toys import assert_same, ids_of, load, noisy, visit, write_shards
from tar_toys import BLOCK, END, entry, picture, write

from tinydiffusion.abilities import Fingerprinted, Selective, Streaming
from tinydiffusion.datasets.tar import TarDataset
from tinydiffusion.evaluation.sources import DatasetPictures
from tinydiffusion.pictures.decode import UnusablePictureError
from tinydiffusion.pictures.usable import first_usable, usable
from tinydiffusion.protocols import Dataset
from tinydiffusion.shards.copies import ShardError
from tinydiffusion.survey import evaluation_prompts, survey
from tinydiffusion.training.data_order import Batches

COUNTS = (7, 30, 1, 22)


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "set", *COUNTS)


# ---- equal to the data set in memory ---------------------------------------------------------


@pytest.fixture
def mixed(tmp_path):
    """All kinds and sizes of pictures and captions, and members in any order."""
    write_shards(tmp_path / "mixed", 3, side=20)
    write(
        tmp_path / "mixed/5.tar",
        entry("late.txt", b" first the text, bl\xc3\xa5 \n"),
        noisy("a", 1, 17, "JPEG", caption=["one", " two ", ""]),
        noisy("sub/b.v2", 2, 8, "WEBP"),
        entry("c.json", b'{"text": "tex\\u0000t", "other": 3}'),
        entry("c.png", encode(noise(30, 5).crop((0, 0, 30, 12)))),
        entry("late.png", encode(noise(9, 7).convert("L"))),
        entry("c.txt", b"text goes before json"),
        entry("extra.npy", b"not read"),
    )
    return tmp_path / "mixed"


@pytest.mark.parametrize("crop", ["center", "random"])
def test_pixels_captions_and_ids_are_those_of_tar(mixed, crop):
    shards = load(mixed, crop=crop, flip=True)
    tar = TarDataset(path=mixed, size=8, crop=crop, flip=True)
    assert len(shards) == len(tar) == 7
    assert shards.skipped == tar.skipped
    numbers = {tar[i]["id"]: i for i in range(7)}
    for i in range(7):
        assert_same(shards[i], tar[i])
        seen = visit(shards, i)
        expected = tar.augment(numbers[seen["id"]], torch.Generator().manual_seed(i))
        assert_same(seen, expected)


def test_options_are_those_of_tar(mixed):
    assert len(load(mixed, limit=5)) == 5
    assert sorted(ids_of(load(mixed, limit=3))) == [f"0.tar/{i:03}" for i in range(3)]
    assert load(mixed / "5.tar", size=12)[1]["image"].shape == (3, 12, 12)
    assert len(load(str(mixed / "?.tar"))) == len(load(f"file://{mixed}")) == 7
    for options in ({"size": 0}, {"crop": "left"}, {"limit": 0}, {"window": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            load(mixed, **options)
    with pytest.raises(ValueError, match="no shards in"):
        load(mixed.parent)
    with pytest.raises(ValueError, match="No such file"):
        load(mixed / "none.tar")


def test_reads_what_the_webdataset_layout_says(tmp_path):
    """Made with `tarfile` as its users do: keys up to the first dot, members of a key together."""
    with tarfile.open(tmp_path / "data-000000.tar", "w") as archive:
        for number in range(5):
            parts = {"jpg": encode(noise(16, number), "JPEG"), "json": b'{"text": "a", "w": 16}'}
            for suffix, content in parts.items():
                member = tarfile.TarInfo(f"sample{number:06}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    dataset = load(tmp_path)
    assert [dataset[i]["id"] for i in range(5)] == [
        f"data-000000.tar/sample{i:06}" for i in range(5)
    ]
    assert all(isinstance(dataset, p) for p in (Dataset, Streaming, Selective, Fingerprinted))


# ---- the order -------------------------------------------------------------------------------


def test_an_epoch_has_every_picture_once_in_an_order_of_its_own(shards):
    dataset = load(shards, window=16)
    every = [dataset[i]["id"] for i in range(len(dataset))]
    epochs = [ids_of(dataset, epoch) for epoch in range(3)]
    assert len(every) == sum(COUNTS)
    assert all(sorted(epoch) == sorted(every) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [every, *epochs]}) == 4


def test_a_stop_in_the_middle_of_a_shard_changes_nothing(shards):
    whole = [visit(load(shards, window=16), place, 1) for place in range(60)]
    for start in (1, 17, 38):
        resumed = load(shards, window=16)
        for place in range(start, 60):
            assert_same(visit(resumed, place, 1), whole[place])


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("workers", [1, 2])
def test_processes_and_workers_share_an_epoch_without_overlap(shards, processes, workers):
    """Each asks for its own places only: batches of 4 taken in turn by the loaders of a process."""
    alone = ids_of(load(shards, window=16), 3)
    dataset = load(shards, window=16)
    together = [""] * 60
    for loader in range(processes * workers):
        own = pickle.loads(pickle.dumps(dataset))
        places = [place for place in range(60) if place // 4 % (processes * workers) == loader]
        for place, id_ in zip(places, ids_of(own, 3, places), strict=True):
            assert together[place] == ""
            together[place] = id_
    assert together == alone


def test_a_window_opens_few_shards(tmp_path):
    dataset = load(write_shards(tmp_path / "set", *[5] * 40), window=20)
    order = ids_of(dataset)
    for first in range(0, 200, 20):
        assert len({id_.partition("/")[0] for id_ in order[first : first + 20]}) <= 6


# ---- faults ----------------------------------------------------------------------------------


def test_a_cut_shard_is_named_and_what_lies_before_the_cut_is_used(shards):
    whole = (shards / "1.tar").read_bytes()
    (shards / "1.tar").write_bytes(whole[: len(whole) // 2])
    dataset = load(shards, window=16)
    ((name, reason),) = (item for item in dataset.skipped if item.reason.startswith("shard"))
    assert name == "1.tar"
    assert re.match(r"shard cut: at byte \d+", reason)
    assert re.search(r"1 shard cut \(first 1\.tar: at byte", dataset.describe_skipped())
    left = len(dataset) - (sum(COUNTS) - 30)
    assert 12 <= left <= 16
    assert sum(id_.startswith("1.tar/") for id_ in ids_of(dataset)) == left


def ids_in_batches(dataset, batch_size=6):
    """What training sees of one epoch."""
    batches = Batches(dataset, batch_size)
    starts = range(0, len(dataset) - batch_size + 1, batch_size)
    return [id_ for start in starts for id_ in batches.batch_at(start)["id"]]


def test_an_unusable_picture_is_named_and_left_out_never_replaced(shards):
    whole = ids_in_batches(load(shards, window=16))
    parts = [noisy(f"{i:03}", 3000 + i) for i in range(22)]
    for i in (4, 20, 21):
        parts[i] = entry(f"{i:03}.png", picture()[:50]) + entry(f"{i:03}.txt", b"cut")
    write(shards / "3.tar", *parts)
    dataset = load(shards, window=16)
    assert dataset.skipped == []
    with pytest.warns(UserWarning, match=r"3\.tar/0(04|20|21): unreadable: .*left out") as caught:
        order = ids_in_batches(dataset)
    assert order == ids_in_batches(dataset)
    bad = {"3.tar/004", "3.tar/020", "3.tar/021"}
    assert len(caught) == len(dataset.skipped) == len(bad & set(whole))
    assert dataset.describe_skipped().startswith(
        f"{len(bad & set(whole))} unreadable (first 3.tar/"
    )
    assert order == [id_ for id_ in whole if id_ not in bad]
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(UnusablePictureError, match=r"^3\.tar/004: unreadable"),
    ):
        load(shards)[38 + 4]  # another process, another history


@pytest.mark.filterwarnings("ignore:.*left out:UserWarning")
def test_what_is_left_out_is_left_out_everywhere(shards):
    parts = [noisy(f"{i:03}", 3000 + i) for i in range(22)]
    parts[0] = entry("000.png", picture()[:50]) + entry("000.txt", b"cut")
    write(shards / "3.tar", *parts)
    dataset, place = load(shards), 38  # of the first picture of 3.tar
    captions, _ = survey(dataset)
    assert len(captions) == len(dataset) - 1
    prompts = evaluation_prompts(dataset, 2 * len(dataset))
    assert len(prompts) == 2 * len(dataset)
    assert "cut" not in captions + prompts
    pictures = DatasetPictures("reference", dataset)
    batch = pictures.read(range(len(dataset)))
    assert list(pictures.unreadable) == [f"reference {place}"]
    assert batch["id"].tolist() == [i for i in range(len(dataset)) if i != place]
    assert len(batch["image"]) == len(batch["prompt"]) == len(dataset) - 1


@pytest.mark.filterwarnings("ignore:.*left out:UserWarning")
def test_a_batch_of_nothing_usable_is_an_error(tmp_path):
    bad = (entry(f"{i}.png", b"") + entry(f"{i}.txt", b"x") for i in range(8))
    dataset = load(write(tmp_path / "s.tar", *bad, noisy("z", 1)), limit=8)
    with pytest.raises(ValueError, match="none of the 4 pictures from position 0 on can be used"):
        Batches(dataset, 4).batch_at(0)
    with pytest.raises(ValueError, match="no picture of the data set can be used"):
        survey(dataset)


def test_a_bad_caption_counts_as_unusable_too(tmp_path):
    write(
        tmp_path / "s.tar",
        noisy("a", 1),
        entry("b.png", picture()) + entry("b.json", b'{"txet": "b"}'),
        entry("c.png", picture()) + entry("c.txt", b"  "),
        noisy("small", 2, side=4),
        noisy("d", 3),
    )
    dataset = load(tmp_path)
    with pytest.warns(UserWarning, match="left out"):
        assert [example["id"] for example in usable(dataset, range(5))] == ["s.tar/a", "s.tar/d"]
    reasons = dict(dataset.skipped)
    assert "no 'text' (did you mean 'txet'?)" in reasons["s.tar/b"]
    assert reasons["s.tar/c"] == "without caption"
    assert reasons["s.tar/small"] == "smaller than size=8: 4x4"


def test_only_the_first_unusable_pictures_are_named(tmp_path):
    bad = (entry(f"{i}.png", b"") + entry(f"{i}.txt", b"x") for i in range(50))
    dataset = load(write(tmp_path / "s.tar", *bad, noisy("z", 1)))
    with pytest.warns(UserWarning, match="left out") as caught:
        assert first_usable(dataset)["id"] == "s.tar/z"
    assert len(caught) == 20
    assert "further ones are counted only" in str(caught[-1].message)
    assert dataset.describe_skipped().startswith("50 unreadable")
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match="none of the 50 pictures of the data set can be used"),
    ):
        first_usable(load(tmp_path, limit=50))


def test_what_the_headers_tell_is_skipped_at_the_start(tmp_path):
    write(tmp_path / "s.tar", noisy("a", 1), noisy("b", 2), entry("c.txt", b"alone"))
    assert load(tmp_path).skipped == [("s.tar/c", "a caption without a picture")]
    write(tmp_path / "s.tar", entry("a.png", picture()), entry("c.txt", b"alone"))
    with pytest.raises(ValueError, match=r"0 usable pictures.*1 without caption"):
        load(tmp_path)
    (tmp_path / "s.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    with pytest.raises(ValueError, match="compressed"):
        load(tmp_path)


def test_a_shard_that_changes_during_the_run_is_an_error(shards):
    dataset = load(shards / "1.tar")
    (shards / "1.tar").write_bytes(noisy("a", 5) + END)
    with pytest.raises(ShardError, match=r"1\.tar is not the file that it was"):
        dataset[0]
    dataset = load(shards / "1.tar")
    dataset[0]
    os.truncate(shards / "1.tar", BLOCK)
    with pytest.raises(ShardError, match="is shorter than it was"):
        dataset[0]


# ---- what is kept ----------------------------------------------------------------------------


def test_headers_are_read_once(shards, cache_folder, monkeypatch):
    first = load(shards)
    assert len(list(cache_folder.iterdir())) == len(COUNTS)
    monkeypatch.setattr("tinydiffusion.shards.index.index_shard", None)
    assert_same(load(shards)[11], first[11])
    monkeypatch.undo()
    before = first.fingerprints()
    write(shards / "2.tar", noisy("x", 1), noisy("y", 2))
    again = load(shards)
    assert len(again) == len(first) + 1
    changed = {k for k, v in again.fingerprints().items() if before[k] != v}
    assert changed == {"2.tar"}
    assert list(again.fingerprints()) == ["0.tar", "1.tar", "2.tar", "3.tar"]


def test_few_files_stay_open(tmp_path):
    dataset = load(write_shards(tmp_path / "set", *[2] * 40), window=4)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        ids_of(dataset)
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 12


def test_captions_are_read_as_json_column(tmp_path):
    record = json.dumps({"text": "no", "caption": ["yes", "ja"]}).encode()
    write(tmp_path / "s.tar", entry("a.png", picture()), entry("a.json", record))
    assert load(tmp_path, caption_column="caption")[0]["caption"] == ["yes", "ja"]


def test_memory_stays_flat(tmp_path):
    """What is held after the second epoch is held after the fourth; 200 shards are seen in each."""
    dataset = load(write_shards(tmp_path / "set", *[2] * 200, side=8), window=20)
    held = []
    tracemalloc.start(1)
    try:
        for epoch in range(4):
            for place in range(400):
                visit(dataset, place, epoch)
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert held[3] - held[1] < 20_000
