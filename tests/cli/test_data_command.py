"""Proves that `tinydiffusion data` tells what training will see of a set, and what it will not."""

import io
import json
import os
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from tinydiffusion.cli.main import main
from tinydiffusion.datasets.folder import FolderDataset


def picture(seed, size=(16, 12)):
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def fill(folder, names, seed=0):
    """Pictures of these names with captions; another seed, other pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"file_name": name, "text": f"a picture called {name}"} for name in names]
    for number, name in enumerate(names):
        picture(100 * seed + number).save(folder / name, "PNG")
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def folder(tmp_path):
    """Three good pictures, two of them the same, one bad and one that is not listed."""
    root = fill(tmp_path / "set", ["a.png", "b.png", "c.png", "cut.png"])
    (root / "c.png").write_bytes((root / "a.png").read_bytes())
    (root / "cut.png").write_bytes((root / "cut.png").read_bytes()[:200])
    return root


@pytest.fixture
def scan(tmp_path, capsys):
    """Runs the command with --size 8; gives what it prints and what its JSON file holds."""

    def scan(*arguments, size=("--size", "8")):
        file = tmp_path / "out" / "scan.json"
        assert main(["data", *map(str, arguments), *size, "--json", str(file)]) == 0
        return capsys.readouterr(), json.loads(file.read_text())

    return scan


def test_a_set_is_told(folder, scan):
    printed, report = scan(folder)
    assert report["samples"][0] == {
        "path": "a.png", "caption": "a picture called a.png", "width": 16, "height": 12
    }  # fmt: skip
    assert [sample["path"] for sample in report["samples"]] == ["a.png", "b.png", "c.png"]
    (skipped,) = report["skipped"]
    assert skipped["path"] == "cut.png"
    assert skipped["reason"].startswith("unreadable: ")
    assert report["duplicates"] == [[{"path": "a.png"}, {"path": "c.png"}]]
    assert (report["shared"], report["notes"]) == ([], {})
    lines = printed.out.splitlines()
    assert lines[0] == "set: 3 of 4 pictures load"
    assert lines[1].startswith("  skipped: 1 unreadable (first cut.png: ")
    assert lines[2] == "  sizes: 16x12 to 16x12, median 16x12, commonest 16x12 (3)"
    assert lines[3:5] == ["duplicates (the same pixels again): 1 groups", "  set/a.png = set/c.png"]
    assert lines[5].startswith("captions: 3, in tokens of clip: median ")
    assert lines[5].endswith("; 0 are cut to 16")
    assert printed.err == ""


def test_the_scan_is_what_training_sees(folder, scan):
    _, report = scan(folder)
    dataset = FolderDataset(path=folder, size=8)
    seen = [(dataset[i]["id"], dataset[i]["caption"]) for i in range(len(dataset))]
    assert seen == [(sample["path"], sample["caption"]) for sample in report["samples"]]
    assert [item._asdict() for item in dataset.skipped] == report["skipped"]


def test_the_number_of_workers_changes_no_byte(folder, tmp_path, monkeypatch):
    written = set()
    for workers in ("1", "2", "5"):
        monkeypatch.setenv("TINYDIFFUSION_CACHE", str(tmp_path / f"cache{workers}"))
        file = tmp_path / f"{workers}.json"
        arguments = ["--json", str(file), "--size", "8", "--workers", workers]
        assert main(["data", str(folder), *arguments]) == 0
        written.add(file.read_bytes())
    assert len(written) == 1


def test_sub_folders_are_splits_and_what_they_share_is_told(tmp_path, scan):
    fill(tmp_path / "set/test", ["x.png", "y.png"], seed=1)
    fill(tmp_path / "set/train", ["a.png", "b.png"])
    fill(tmp_path / "set/.hidden", ["h.png"])
    (tmp_path / "set/empty").mkdir()
    picture(0).save(tmp_path / "set/test/x.png")
    printed, report = scan(tmp_path / "set")
    assert [(sample["split"], sample["path"]) for sample in report["samples"]] == [
        ("train", "a.png"), ("train", "b.png"), ("test", "x.png"), ("test", "y.png")
    ]  # fmt: skip
    assert report["duplicates"] == []
    shared = [{"split": "train", "path": "a.png"}, {"split": "test", "path": "x.png"}]
    assert report["shared"] == [shared]
    assert "pictures shared between sets: 1 groups\n  train/a.png = test/x.png" in printed.out
    assert scan(tmp_path / "set/train", tmp_path / "set/test")[1] == report


def test_paths_of_one_name_are_told_apart(tmp_path, scan):
    first, second = (
        fill(tmp_path / part / "set", ["a.png"], seed=i) for i, part in enumerate("xy")
    )
    _, report = scan(first, second)
    assert [sample["split"] for sample in report["samples"]] == [str(first), str(second)]


def test_more_than_half_skipped_is_told_and_warned_of(tmp_path, scan):
    root = fill(tmp_path / "set", ["a.png", "b.png", "c.png"])
    for name in "bc":
        (root / f"{name}.png").write_bytes(b"")
    printed, report = scan(root)
    assert (len(report["samples"]), len(report["skipped"])) == (1, 2)
    assert printed.out.startswith("set: 1 of 3 pictures load")
    (warning,) = printed.err.splitlines()
    assert warning.startswith("warning: training would refuse this: ")
    assert "2 of 3 pictures cannot be used" in warning


def test_notes_are_counted(tmp_path, scan):
    root = fill(tmp_path / "set", ["a.png", "b.png", "c.png"])
    for name in "ab":
        picture(1).convert("RGBA").save(root / f"{name}.png")
    rows = [{"file_name": f"{n}.png", "text": "a\0b" if n == "c" else n} for n in "abc"]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    printed, report = scan(root)
    assert report["notes"] == {
        "transparency laid on white": 2,
        "control characters in the caption replaced by spaces": 1,
    }
    assert "  note: 2 x transparency laid on white" in printed.out


def test_captions_that_are_cut_are_counted(tmp_path, scan):
    root = fill(tmp_path / "set", ["a.png", "b.png"])
    rows = [{"file_name": "a.png", "text": "short"}, {"file_name": "b.png", "text": "1 2 3 " * 40}]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    printed, _ = scan(root)
    assert "longest 77; 1 are cut to 77" in printed.out


def test_names_and_captions_that_are_no_text_travel_through_the_file(tmp_path, scan):
    name = os.fsdecode(b"caf\xe9\n.png")
    root = fill(tmp_path / "set", ["a.png", name])
    (root / os.fsdecode(b"\xff.png")).write_bytes(b"")
    rows = [{"file_name": n, "text": "half \ud800"} for n in ("a.png", name)]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    printed, report = scan(root, "--sheet", tmp_path / "sheet.png")
    assert [sample["path"] for sample in report["samples"]] == ["a.png", name]
    assert report["samples"][1]["caption"] == "half \ufffd"
    assert report["skipped"][0]["path"] == os.fsdecode(b"\xff.png")
    assert "(first \\udcff.png)" in printed.out


def test_a_terminal_that_knows_few_letters_is_no_obstacle(tmp_path, monkeypatch):
    root = fill(tmp_path / "\u05e2", ["a.png"])
    printed = tmp_path / "printed"
    console = io.TextIOWrapper(printed.open("wb"), "ascii")
    for name in ("stdout", "__stdout__"):  # that of the process
        monkeypatch.setattr(sys, name, console)
    assert main(["data", str(root), "--size", "8"]) == 0
    assert printed.read_bytes().startswith(b"\\u05e2: 1 of 1 pictures load")


@pytest.mark.filterwarnings("always::UserWarning")
def test_what_is_unusual_about_a_folder_is_a_warning(tmp_path, scan):
    folder = tmp_path / "set"
    folder.mkdir()
    picture(0).save(folder / "a.png")
    (folder / "metadata.csv").write_text("file_name;text\na.png;red\na.png;red\n")
    printed, _ = scan(folder)
    assert printed.err.splitlines() == [
        f"warning: {folder}: metadata.csv: its columns are separated by semicolons, not by commas",
        f"warning: {folder}: metadata.csv: 1 rows repeat the picture and caption of another",
    ]


def test_class_folders_are_one_set_once_their_names_are_captions(tmp_path, scan, mistake):
    for name in ("cats/001.png", "dogs/001.png"):
        (tmp_path / name).parent.mkdir()
        picture(0).save(tmp_path / name)
    assert "or set dataset.captions: folder" in mistake("data", str(tmp_path))
    _, report = scan(tmp_path, "--captions", "folder")
    assert [(s["path"], s["caption"]) for s in report["samples"]] == [
        ("cats/001.png", "cats"), ("dogs/001.png", "dogs")
    ]  # fmt: skip


# ---- config, sheet ---------------------------------------------------------------------------


def test_a_run_is_scanned_as_it_will_train(tmp_path, scan):
    train = fill(tmp_path / "one", ["a.png", "b.png", "c.png"])
    held_out = fill(tmp_path / "two", ["x.png"], seed=1)
    config = tmp_path / "run.yaml"
    config.write_text(
        f"dataset: {{name: folder, path: {train}, size: 8, limit: 2}}\n"
        f"validation: {{path: {held_out}}}\n"
        "text_encoder: {name: clip, max_length: 5}\n"
    )
    printed, report = scan("--config", config, size=())
    assert [(sample["split"], sample["path"]) for sample in report["samples"]] == [
        ("train", "a.png"), ("train", "b.png"), ("validation", "x.png")
    ]  # fmt: skip
    assert "3 are cut to 5" in printed.out
    _, other = scan("--config", config, held_out, size=())
    assert [sample["path"] for sample in other["samples"]] == ["x.png"]


def test_shards_are_scanned_too(tmp_path, scan):
    folder = fill(tmp_path / "set", ["a.png", "b.png"])
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for name in ("a", "b"):
            (folder / f"{name}.txt").write_text(name)
            for file in (f"{name}.png", f"{name}.txt"):
                shard.add(folder / file, file)
    _, report = scan(tmp_path / "shard.tar")
    assert [(s["path"], s["caption"]) for s in report["samples"]] == [
        ("shard.tar/a", "a"), ("shard.tar/b", "b")
    ]  # fmt: skip


def test_a_set_that_is_drawn_has_nothing_to_scan(tmp_path, mistake):
    (tmp_path / "run.yaml").write_text("dataset: {name: scenes}\n")
    assert "train set is not read from picture files" in mistake(
        "data", "--config", str(tmp_path / "run.yaml")
    )


def test_the_sheet_shows_the_pictures(tmp_path, scan):
    root = fill(tmp_path / "set", [f"{i:03d}.png" for i in range(70)])
    Image.new("RGB", (8, 8), (255, 0, 255)).save(root / "000.png")
    sheet = tmp_path / "out" / "sheet.png"
    scan(root, "--sheet", sheet)
    with Image.open(sheet) as image:
        pixels = torch.from_numpy(np.asarray(image).copy())
    assert pixels.shape[1] == 8 * (96 + 8) + 8
    colourful = (pixels.float().std(dim=-1) > 0).float().mean()
    assert colourful > 0.3


# ---- mistakes --------------------------------------------------------------------------------


def test_nothing_usable_is_a_mistake(folder, mistake):
    error = mistake("data", str(folder), "--size", "500")
    assert "4 of 4 pictures cannot be used" in error
    assert "smaller than size=500 (first a.png: 16x12)" in error


def test_broken_metadata_is_a_mistake_with_its_line(folder, mistake):
    with (folder / "metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "a.png"\n')
    assert "metadata.jsonl:5: not valid JSON" in mistake("data", str(folder))


def test_no_captions_are_a_mistake(tmp_path, mistake):
    picture(0).save(tmp_path / "a.png")
    assert "no captions in" in mistake("data", str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name one or more folders"),
        (["nowhere"], "no such folder: nowhere"),
        (["SET", "SET"], "a set is named twice"),
        (["SET", "--workers", "0"], "must be at least 1"),
        (["SET", "--caption-column", "txt"], "no 'txt' (did you mean 'text'?)"),
        (["SET", "--sheet", "sheet.gif"], "must end in .png"),
        (["SET", "--json", "SET/a.png/scan.json"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line(folder, mistake, arguments, words):
    assert words in mistake("data", *(a.replace("SET", str(folder)) for a in arguments))


def test_what_is_skipped_is_written_even_where_nothing_is_usable(tmp_path, mistake):
    folder, file = tmp_path / "bad", tmp_path / "bad.json"
    folder.mkdir()
    (folder / "a.png").write_text("no picture")
    (folder / "a.txt").write_text("a caption")
    assert "1 of 1 pictures cannot be used" in mistake("data", str(folder), "--json", str(file))
    scan = json.loads(file.read_text())
    assert scan["samples"] == []
    assert [row["path"] for row in scan["skipped"]] == ["a.png"]
