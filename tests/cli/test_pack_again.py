"""Packing ends in the same bytes however often it is stopped, and `--check` names every change."""

import errno
import signal
import subprocess
import sys
import time

import fsspec
import pytest
from pack_toys import SIZE, contents, fill, manifest_of, opened, pack

from tinydiffusion.cli.main import main
from tinydiffusion.packing import pack as pack_module
from tinydiffusion.packing import progress, writer
from tinydiffusion.shards import copies, index
from tinydiffusion.shards.copies import ShardError

OPTIONS = (*SIZE, "--shard-size", "4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """23 pictures, of which 4 cannot be read."""
    return fill(tmp_path_factory.mktemp("source") / "set", 23)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """What comes out when nothing is stopped: 4, 4, 4, 4 and 3 pictures."""
    out = tmp_path_factory.mktemp("whole") / "out"
    pack(folder, out, *OPTIONS)
    return contents(out)


@pytest.fixture
def out(tmp_path, whole):
    """A packed folder to be damaged."""
    (tmp_path / "out").mkdir()
    for name, content in whole.items():
        (tmp_path / "out" / name).write_bytes(content)
    return tmp_path / "out"


# ---- the same bytes --------------------------------------------------------------------------


def test_workers_and_a_second_call_alter_no_byte(folder, tmp_path, whole, capsys):
    pack(folder, tmp_path / "out", *OPTIONS, "--workers", 5)
    assert contents(tmp_path / "out") == whole
    pack(folder, tmp_path / "out", *OPTIONS)
    assert contents(tmp_path / "out") == whole
    assert "is packed already: 19 pictures, 5 shards" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (writer.ShardWriter, "add"),
        (writer, "sync_folder"),
        (progress, "replace_file"),
        (progress.shutil, "rmtree"),
    ],
)
def test_stopped_anywhere_it_ends_in_the_same_bytes(
    folder, tmp_path, whole, monkeypatch, owner, name
):
    """At its first call, in the next start at its second, and so on until nothing is left."""
    real = getattr(owner, name)
    for stop in range(1, 30):
        calls = []

        def counted(*arguments, calls=calls, stop=stop):
            calls.append(arguments)
            if len(calls) == stop:
                raise KeyboardInterrupt
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, counted)
            code = main(["pack", str(folder), str(tmp_path / "out"), *OPTIONS])
        if len(calls) < stop:
            break
        assert code == 130
    assert code == 0
    assert stop > 1
    pack(folder, tmp_path / "out", *OPTIONS)
    assert contents(tmp_path / "out") == whole


def test_killed_it_goes_on(tmp_path):
    source, out = fill(tmp_path / "set", 40, (200, 200)), tmp_path / "out"
    options = ["--size", "190", "--shard-size", "3"]
    command = [
        sys.executable,
        "-m",
        "tinydiffusion.cli.main",
        "pack",
        str(source),
        str(out),
        *options,
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (out / "shard-00002.tar").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.json").exists()
    kept = {file: file.stat().st_mtime_ns for file in out.glob("shard-0000[01].tar")}
    pack(source, out, *options)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    pack(source, tmp_path / "other", *options)
    assert contents(out) == contents(tmp_path / "other")


def test_few_pictures_are_held_at_a_time(folder, tmp_path, monkeypatch):
    begun, held = [], []
    source = pack_module.open_source

    def counted(section):
        opened = source(section)
        return opened._replace(items=lambda start: map(begin, opened.items(start)))

    def begin(item):
        begun.append(item)
        return item

    take = progress.Packer.take

    def taken(packer, *result):
        take(packer, *result)
        held.append(len(begun) - packer._taken)

    monkeypatch.setattr(pack_module, "open_source", counted)
    monkeypatch.setattr(progress.Packer, "take", taken)
    pack(folder, tmp_path / "out", *OPTIONS, "--workers", 2)
    assert len(held) == 23
    assert max(held) <= 4


# ---- mistakes --------------------------------------------------------------------------------


@pytest.fixture
def refused(capsys):
    """Runs a command line that must end in one line and exit code 2."""

    def refused(message, *arguments):
        pack(*arguments, code=2)
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1

    return refused


def test_wrong_command_lines(folder, tmp_path, refused):
    out = tmp_path / "out"
    refused("name a source and a folder to make, got 1 paths", folder)
    refused("name one folder, got 2 paths", folder, out, "--check")
    refused("give --size N", folder, out)
    refused("invalid choice: 'bmp'", folder, out, *SIZE, "--format", "bmp")
    refused("no such folder", tmp_path / "none", out, *SIZE)
    refused("No such file", out, "--check")
    refused("no shards in", tmp_path, "--check")
    assert not out.exists()


def test_other_settings_and_foreign_folders_are_refused(folder, tmp_path, out, refused):
    refused("made with shard_size=4, now it is 5", folder, out, *SIZE, "--shard-size", "5")
    refused("made with picture_format='png'", folder, out, *OPTIONS, "--format", "jpg")
    refused("holds files that tinydiffusion did not make", folder, folder, *OPTIONS)
    (out / "manifest.json").write_text('{"format": "wids"}')
    refused("no manifest of packed shards", folder, out, *OPTIONS)


def test_a_source_that_changes_in_between_is_refused(tmp_path, monkeypatch, refused):
    source = fill(tmp_path / "set", 12)
    with monkeypatch.context() as patch:
        patch.setattr(progress, "dump_manifest", _raise(KeyboardInterrupt))
        pack(source, tmp_path / "out", *OPTIONS, code=130)
    lines = (source / "metadata.jsonl").read_text().splitlines()
    (source / "metadata.jsonl").write_text("\n".join(lines[1:]))
    (source / "0000.png").unlink()
    refused("the data set has changed since", source, tmp_path / "out", *OPTIONS)


def test_a_set_that_is_mostly_unusable_is_refused(tmp_path, refused):
    source = fill(tmp_path / "set", 10)
    for i in range(6):
        (source / f"{i:04}.png").write_bytes(b"no picture")
    refused("7 of 10 pictures cannot be used", source, tmp_path / "out", *SIZE)
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_full_disk_is_named_and_gone_on_from(folder, tmp_path, whole, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, "No space left on device")
        patch.setattr(writer, "sync_folder", _raise(full))
        pack(folder, tmp_path / "out", *OPTIONS, code=3)
    assert "No space left on device. What is packed stays" in capsys.readouterr().err
    pack(folder, tmp_path / "out", *OPTIONS)
    assert contents(tmp_path / "out") == whole


def _raise(error):
    def refuse(*arguments, **options):
        raise error

    return refuse


# ---- whole or not ----------------------------------------------------------------------------


def test_a_whole_set_passes(out, capsys):
    pack("--check", out)
    assert capsys.readouterr().out == "19 pictures in 5 shards; all are whole\n"
    (out / "manifest.json").unlink()
    pack("--check", out)
    assert "no manifest.json" in capsys.readouterr().out


def test_what_is_not_whole_is_named(out, capsys):
    cut, flipped = out / "shard-00001.tar", out / "shard-00003.tar"
    cut.write_bytes(cut.read_bytes()[:3000])
    content = bytearray(flipped.read_bytes())
    content[700] ^= 1
    flipped.write_bytes(content)
    (out / "shard-00002.tar").unlink()
    (out / "extra.tar").write_bytes((out / "shard-00000.tar").read_bytes())
    pack("--check", out, code=1)
    lines = capsys.readouterr().out.splitlines()
    assert "shard-00002.tar: shard missing: 4 pictures" in lines
    assert "extra.tar: shard not listed in manifest.json" in lines
    assert "shard-00003.tar: its SHA-256 is not that of the manifest" in lines
    assert any(line.startswith("shard-00001.tar: shard cut: at byte 3072") for line in lines)
    assert lines[-1].endswith("4 shards are not whole")


def test_with_a_manifest_no_headers_are_read_at_the_start(out, monkeypatch):
    monkeypatch.setattr(index, "index_shard", None)
    dataset = opened(out)
    assert len(dataset) == 19
    assert dataset.fingerprints() == {s["name"]: s["sha256"] for s in manifest_of(out)["shards"]}


def test_cut_and_missing_shards_are_named_at_the_start(out):
    cut = out / "shard-00001.tar"
    cut.write_bytes(cut.read_bytes()[:3000])
    (out / "shard-00002.tar").unlink()
    dataset = opened(out)
    assert len(dataset) in (12, 13)
    left = len(dataset) - 11
    reasons = [f"{item.path}: {item.reason}" for item in dataset.skipped if "sh" in item.reason]
    size = manifest_of(out)["shards"][1]["bytes"]
    assert f"shard-00001.tar: shard not as it was packed: 3000 bytes where {size} were written; " \
        f"{left} of 4 pictures are left" in reasons  # fmt: skip
    assert "shard-00002.tar: shard missing: 4 pictures" in reasons
    assert "2 shard" not in dataset.describe_skipped()
    ids = [dataset[i]["id"] for i in range(len(dataset))]
    assert len(set(ids)) == len(ids)


def test_damage_that_the_size_does_not_tell_stops_the_run(out):
    content = bytearray((out / "shard-00001.tar").read_bytes())
    start = content.index(b"00000006.png")
    content[start : start + 4] = b"\xff\xff\xff\xff"
    (out / "shard-00001.tar").write_bytes(content)
    with pytest.raises(ShardError, match=r"00001\.tar is not as it was packed: 2 of 4 pictures"):
        opened(out)[4]


@pytest.mark.parametrize("lists", [True, False], ids=["lists", "lists nothing"])
def test_a_packed_set_at_an_address(out, whole, monkeypatch, lists):
    """Also where the address lists nothing, as most of http."""
    monkeypatch.setattr(copies, "WAITS", ())
    fs = fsspec.filesystem("memory")
    for name, content in whole.items():
        fs.pipe_file(f"/packed/{name}", content)
    if not lists:
        monkeypatch.setattr(type(fs), "ls", _raise(FileNotFoundError("no listing")))
    here, there = opened(out), opened("memory://packed")
    assert here.fingerprints() == there.fingerprints()
    for i in range(19):
        assert here[i]["id"] == there[i]["id"]
        assert (here[i]["image"] == there[i]["image"]).all()
    pack("--check", "memory://packed")
    content = bytearray(whole["shard-00004.tar"])
    content[-1] ^= 1
    fs.pipe_file("/packed/shard-00004.tar", bytes(content))
    for copy in copies.ShardCopies(0).folder.glob("*.tar"):
        copy.unlink()
    with pytest.raises(ShardError, match=r"00004\.tar is not what its manifest says"):
        opened("memory://packed")[18]
    pack("--check", "memory://packed", code=1)
    fs.store.clear()
