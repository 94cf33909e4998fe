"""Proves that one scan decodes each picture once, whatever the threads, and keeps it by content."""

import errno
import os
import time
import warnings
from pathlib import Path

import pytest
import torch
from picture_toys import encode, noise
from PIL import Image

from tinydiffusion.abilities import Fingerprinted
from tinydiffusion.datasets.folder import FolderDataset, find_pictures
from tinydiffusion.pictures import cache, decode
from tinydiffusion.pictures import scan as pictures_scan
from tinydiffusion.pictures.decode import UnusablePictureError
from tinydiffusion.pictures.scan import Found, Scan, Skipped
from tinydiffusion.pictures.views import view_of


@pytest.fixture
def folder(tmp_path):
    """Seven good pictures of several sizes, three bad ones."""
    root = tmp_path / "set"
    root.mkdir()
    for number, name in enumerate("abcdefg"):
        noise(16 + 3 * number, seed=number).save(root / f"{name}.png")
    (root / "h.png").write_bytes(b"nothing")
    Image.new("RGB", (4, 4)).save(root / "i.png")
    Image.new("RGB", (20, 20)).save(root / "j.png")
    for name in "abcdefghi":
        (root / f"{name}.txt").write_text(f"picture {name}")
    return root


@pytest.fixture
def decoded(monkeypatch):
    """What has been decoded so far, by name."""
    names = []
    load = pictures_scan.load_picture

    def counting(source, *arguments, **options):
        names.append(source.name)
        return load(source, *arguments, **options)

    monkeypatch.setattr(pictures_scan, "load_picture", counting)
    return names


def scan(folder, size=8, crop="center", **options):
    return pictures_scan.scan(find_pictures(folder), view_of(size, crop=crop), **options)


def contents(result: Scan):
    pixels = [result.pixels(i).tolist() for i in range(len(result.samples))]
    return result.samples, result.skipped, pixels


# ---- what comes out --------------------------------------------------------------------------


def test_samples_and_skipped(folder):
    result = scan(folder)
    assert [s.id for s in result.samples] == [f"{name}.png" for name in "abcdefg"]
    assert [(s.caption, s.width, s.height) for s in result.samples] == [
        (f"picture {name}", 16 + 3 * i, 16 + 3 * i) for i, name in enumerate("abcdefg")
    ]
    assert result.skipped == [
        ("h.png", "unreadable: not a picture of a known format"),
        ("i.png", "smaller than size=8: 4x4"),
        ("j.png", "without caption"),
    ]
    assert result.pixels(0).shape == (3, 8, 8)


@pytest.mark.parametrize("crop", ["center", "random"])
def test_the_number_of_threads_changes_nothing(folder, crop, monkeypatch, tmp_path):
    results = []
    for workers in (1, 2, 5):
        monkeypatch.setenv("TINYDIFFUSION_CACHE", str(tmp_path / f"cache-{workers}"))
        results.append(contents(scan(folder, crop=crop, workers=workers)))
    assert results[0] == results[1] == results[2]


def test_parts_change_nothing(folder, monkeypatch):
    whole = contents(scan(folder))
    for length in (1, 2, 3):
        monkeypatch.setattr(pictures_scan, "PART_LENGTH", length)
        assert contents(scan(folder)) == whole


def test_pictures_given_as_bytes_are_held_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(pictures_scan, "PART_BYTES", 10_000)
    picture = encode(noise(40))  # about 5,000 bytes
    pulled = []

    def pictures():
        for number in range(9):
            pulled.append(number)
            yield Found(str(number), picture, "noise")

    lengths = []
    whole_part = pictures_scan._scan_part

    def watch(part, *arguments):
        lengths.append((len(part), len(pulled)))
        return whole_part(part, *arguments)

    monkeypatch.setattr(pictures_scan, "_scan_part", watch)
    assert len(pictures_scan.scan(pictures(), view_of(8)).samples) == 9
    assert lengths == [(3, 3), (3, 6), (3, 9)]


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
def test_limit_stops_early(folder, limit, decoded):
    result = scan(folder, limit=limit)
    assert [s.id[0] for s in result.samples] == list("abcdefg"[:limit])
    assert len(decoded) <= max(limit, 9)
    if limit < 7:
        assert len(decoded) == limit


def test_captions_are_mended_and_noted():
    special = "x <end_of_text> <|startoftext|>"
    captions = ["a\0b", "a\ud800b", special, ["fine", "not\x1bfine"], "ab"]
    picture = encode(noise(8))
    found = [Found(str(i), picture, caption) for i, caption in enumerate(captions)]
    samples = pictures_scan.scan(found, view_of(8)).samples
    assert [s.caption for s in samples] == ["a b", "a\ufffdb", special, ["fine", "not fine"], "ab"]
    assert [" ".join(s.notes)[:12] for s in samples] == [
        "control char", "half charact", "special toke", "control char", ""
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("", "without caption"),
        ([], "without caption"),
        ("\u200b\ufeff \0", "without caption"),
        (["\x01", "\ud800"], None),
        ("x" * 10_001, "with a caption over 10000 characters"),
        (["short", "x" * 10_001], "with a caption over 10000 characters"),
        ("x" * 10_000, None),
        ("שלום עולם \u202eabc", None),
    ],
)
def test_captions_that_are_none(caption, reason):
    result = pictures_scan.scan([Found("a", encode(noise(8)), caption)], view_of(8))
    assert [item.reason for item in result.skipped] == ([] if reason is None else [reason])


def test_a_megabytes_caption_costs_nothing():
    start = time.process_time()
    pictures_scan.scan([Found("a", encode(noise(8)), "x" * 10_000_000)], view_of(8))
    assert time.process_time() - start < 0.1


# ---- the cache -------------------------------------------------------------------------------


def test_the_same_set_is_decoded_once(folder, decoded):
    first = contents(scan(folder))
    assert len(decoded) == 9  # the one without caption is not looked at
    os.utime(folder / "a.png")
    assert contents(scan(folder)) == first
    assert len(decoded) == 9


def test_what_is_found_again_is_mapped_not_read(folder, cache_folder):
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not tell what is mapped")
    result = scan(folder)
    (entry,) = cache_folder.iterdir()
    assert str(entry) in maps.read_text()
    del result


def rename(folder, monkeypatch):
    (folder / "a.png").rename(folder / "a2.png")
    (folder / "a.txt").rename(folder / "a2.txt")


def two_captions(folder, monkeypatch):  # another reason to skip than no caption
    (folder / "j.txt").write_text("")
    (folder / "j.caption").write_text("")


CHANGES = {
    "size": (lambda folder, monkeypatch: None, {"size": 9}),
    "crop": (lambda folder, monkeypatch: None, {"crop": "random"}),
    "name": (rename, {}),
    "caption": (lambda folder, monkeypatch: (folder / "a.txt").write_text("another"), {}),
    "file": (lambda folder, monkeypatch: noise(16, seed=99).save(folder / "a.png"), {}),
    "skipped before": (two_captions, {}),
    "more": (lambda folder, monkeypatch: noise().save(folder / "k.png"), {}),
    "fewer": (lambda folder, monkeypatch: (folder / "a.png").unlink(), {}),
    "pillow": (
        lambda f, monkeypatch: monkeypatch.setattr(pictures_scan.PIL, "__version__", "0"),
        {},
    ),
    "schema": (lambda f, monkeypatch: monkeypatch.setattr(pictures_scan, "SCHEMA", 0), {}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_ingredient_makes_another_entry(folder, decoded, change, monkeypatch, cache_folder):
    scan(folder)
    decoded.clear()
    alter, options = CHANGES[change]
    alter(folder, monkeypatch)
    scan(folder, **options)
    assert len(decoded) >= 8
    assert len(list(cache_folder.iterdir())) == 2


def test_an_edit_costs_its_part_alone_and_a_stopped_scan_goes_on(folder, decoded, monkeypatch):
    monkeypatch.setattr(pictures_scan, "PART_LENGTH", 2)
    whole_part = pictures_scan._scan_part
    parts = []

    def stop_at_third(part, *arguments):
        parts.append(part)
        if len(parts) == 3:
            raise KeyboardInterrupt
        return whole_part(part, *arguments)

    monkeypatch.setattr(pictures_scan, "_scan_part", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        scan(folder)
    assert sorted(decoded) == ["a.png", "b.png", "c.png", "d.png"]
    monkeypatch.setattr(pictures_scan, "_scan_part", whole_part)
    decoded.clear()
    scan(folder)
    assert sorted(decoded) == ["e.png", "f.png", "g.png", "h.png", "i.png"]
    decoded.clear()
    noise(16, seed=99).save(folder / "c.png")
    scan(folder)
    assert sorted(decoded) == ["c.png", "d.png"]


@pytest.mark.parametrize(
    "damage", ["empty", "short", "cut", "header", "pixels", "digest", "longer"]
)
def test_a_damaged_entry_is_named_and_made_anew(folder, decoded, cache_folder, damage):
    first = contents(scan(folder))
    (entry,) = cache_folder.iterdir()
    good = entry.read_bytes()
    flipped = {"digest": 3, "header": 60, "pixels": len(good) - 9}
    if damage in flipped:
        bad = bytearray(good)
        bad[flipped[damage]] ^= 1
    else:
        bad = {"empty": b"", "short": good[:35], "cut": good[:-1], "longer": good + b"\0"}[damage]
    entry.write_bytes(bad)
    decoded.clear()
    with pytest.warns(UserWarning, match=rf"{entry.name}: a damaged cache entry") as caught:
        assert contents(scan(folder)) == first
    assert len(caught) == 1
    assert len(decoded) == 9
    assert entry.read_bytes() == good


def test_a_cache_that_cannot_be_written_is_one_warning(folder, tmp_path, monkeypatch):
    first = contents(scan(folder))
    (tmp_path / "file").touch()
    monkeypatch.setenv("TINYDIFFUSION_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(pictures_scan, "PART_LENGTH", 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        assert contents(scan(folder)) == first
    (warning,) = caught
    assert "Not a directory" in str(warning.message)
    assert "TINYDIFFUSION_CACHE" in str(warning.message)


def test_a_full_disk_leaves_no_half_entry(folder, monkeypatch, cache_folder):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(cache, "replace_file", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        assert len(scan(folder).samples) == 7
    assert list(cache_folder.iterdir()) == []


def test_what_killed_writers_left_is_removed(folder, cache_folder):
    cache_folder.mkdir(parents=True)
    old, young = cache_folder / ".tmp-1", cache_folder / ".tmp-2"
    for file in (old, young):
        file.touch()
    os.utime(old, (0, 0))
    scan(folder)
    assert not old.exists()
    assert young.exists()


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("TINYDIFFUSION_CACHE", "/own")
    assert cache.cache_folder() == Path("/own/datasets")
    monkeypatch.delenv("TINYDIFFUSION_CACHE")
    assert cache.cache_folder() == Path("/xdg/tinydiffusion/datasets")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == tmp_path / ".cache/tinydiffusion/datasets"


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_a_passing_fault_skips_a_picture_once(folder, monkeypatch, error):
    whole = scan(folder)

    def fail(*_):
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(decode, "_decode", fail)
        assert scan(folder, size=9).samples == []
    assert len(scan(folder, size=9).samples) == len(whole.samples)


def test_a_file_that_changes_meanwhile_is_not_kept_under_its_old_content(folder, monkeypatch):
    name = pictures_scan.picture_sha256

    def name_then_change(source):
        digest = name(source)
        if source.name == "a.png":
            noise(16, seed=99).save(source)
        return digest

    monkeypatch.setattr(pictures_scan, "picture_sha256", name_then_change)
    assert scan(folder).skipped[0] == ("a.png", "changed while the data set was read")


def test_an_error_of_ours_ends_the_scan_and_its_threads(folder, monkeypatch):
    def broken(*arguments, **options):
        raise AttributeError("ours")

    monkeypatch.setattr(pictures_scan, "load_picture", broken)
    with pytest.raises(AttributeError, match="ours"):
        scan(folder)


# ---- fingerprints ----------------------------------------------------------------------------


def test_fingerprints_follow_captions_and_pixels(folder):
    dataset = FolderDataset(path=folder, size=8)
    assert isinstance(dataset, Fingerprinted)
    before = dict(dataset.fingerprints())
    assert list(before) == [dataset[i]["id"] for i in range(len(dataset))]
    assert len(set(before.values())) == 7
    (folder / "a.txt").write_text("another")
    noise(19, seed=77).save(folder / "b.png")
    (folder / "c.png").rename(folder / "z.png")
    (folder / "c.txt").rename(folder / "z.txt")
    after = FolderDataset(path=folder, size=8).fingerprints()
    assert after.pop("z.png") == before.pop("c.png")
    assert [name for name in before if before[name] != after[name]] == ["a.png", "b.png"]


def test_the_shape_is_part_of_the_pixels():
    found = [
        Found("wide", encode(Image.new("RGB", (16, 8))), "same"),
        Found("tall", encode(Image.new("RGB", (8, 16))), "same"),
    ]
    wide, tall = pictures_scan.scan(found, view_of(8, crop="random")).samples
    assert wide.sha256 != tall.sha256


def test_pixels_are_those_of_the_file(folder):
    noise(8, seed=5).save(folder / "a.png")
    pixels = scan(folder).pixels(0).permute(1, 2, 0).contiguous()
    assert bytes(pixels.flatten().tolist()) == noise(8, seed=5).tobytes()
    assert pixels.dtype == torch.uint8


def test_reasons_of_the_finder_pass_through():
    result = pictures_scan.scan([Skipped("a", "refused: so")], view_of(8))
    assert result.skipped == [("a", "refused: so")]
    assert issubclass(UnusablePictureError, ValueError)
