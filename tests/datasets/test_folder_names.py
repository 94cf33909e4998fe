"""Proves that odd, misspelt and misleading file names are named and cost a picture at most."""

import json
import os

import pytest
from PIL import Image

from tinydiffusion.datasets.folder import FolderDataset


def save(path):
    Image.new("RGB", (8, 8), (10, 20, 30)).save(path, "PNG")


def row(name, text="a picture"):
    return {"file_name": name, "text": text}


def write_jsonl(folder, *rows):
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def load(folder):
    return FolderDataset(path=folder, size=8)


def ids(dataset):
    return [dataset[i]["id"] for i in range(len(dataset))]


def test_a_name_that_differs_in_case_or_accents_is_told_the_near_one(tmp_path):
    composed, decomposed = "caf\u00e9.png", "cafe\u0301.png"
    for name in ("good1.png", "good2.png", "good3.png", "IMG.PNG", decomposed):
        save(tmp_path / name)
    write_jsonl(
        tmp_path, *(row(f"good{i}.png") for i in "123"), row("img.png"), row(composed)
    )  # fmt: skip
    assert load(tmp_path).skipped == [
        (composed, "missing or not a file: the folder has 'cafe\\u0301.png'"),
        ("img.png", "missing or not a file: the folder has 'IMG.PNG'"),
    ]


def test_names_that_are_odd_or_not_unicode_are_ids_as_they_are(tmp_path):
    odd = ["line\nbreak", "esc\x1b[2J", "עברית", " blank ", os.fsdecode(b"caf\xe9"), "a%20b", "[x]"]
    for name in odd:
        save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("fine")
    (tmp_path / "line\nbreak.txt").write_bytes(b"\xff")
    dataset = load(tmp_path)
    assert sorted(ids(dataset)) == sorted(f"{name}.png" for name in odd[1:])
    assert list(dataset.fingerprints()) == ids(dataset)
    told = dataset.describe_skipped()
    assert told.startswith("1 unreadable caption (first line\\nbreak.png: line\\nbreak.txt is not")
    assert told.isprintable()


def test_names_that_are_not_unicode_may_be_listed(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    save(tmp_path / name)
    write_jsonl(tmp_path, row(name))
    assert ids(load(tmp_path)) == [name]


@pytest.mark.parametrize("name", ["metadata.json1", "sub/metadata.jsonl", "Metadata.cvs"])
def test_metadata_that_is_not_read_is_told_where_captions_are_files(tmp_path, name):
    for letter in "ab":
        save(tmp_path / f"{letter}.png")
        (tmp_path / f"{letter}.txt").write_text(letter)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    ((path, reason),) = load(tmp_path).skipped
    assert path == name
    assert reason.startswith("metadata not read: ")


def test_pictures_and_caption_files_are_no_misspelt_tables(tmp_path):
    for name in ("metadata", "metadata.cs"):
        save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("fine")
    assert load(tmp_path).skipped == []


@pytest.mark.timeout(20)
def test_a_pipe_in_place_of_metadata_does_not_hang(tmp_path):
    save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "metadata.jsonl")
    with pytest.raises(ValueError, match=r"metadata\.jsonl: not a file"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_caption_of_ten_megabytes_costs_its_picture_alone(tmp_path, kind):
    for name in "ab":
        save(tmp_path / f"{name}.png")
    long = "x" * 10_000_000
    rows = [row("a.png", long), row("b.png")]
    if kind == "jsonl":
        write_jsonl(tmp_path, *rows)
    else:
        (tmp_path / "metadata.csv").write_text(f"file_name,text\na.png,{long}\nb.png,short\n")
    dataset = load(tmp_path)
    assert ids(dataset) == ["b.png"]
    assert dataset.skipped == [("a.png", "with a caption over 10000 characters")]


def test_every_folder_is_read_once_however_links_lead_to_it(tmp_path):
    for folder in ("set/own", "more/deep"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("set/a", "set/e", "set/own/b", "more/c", "more/deep/d"):
        save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(name)
    for name, target in {
        "1-more": "../more", "2-deep": "../more/deep", "3-own": "own", "4-self": ".", "5-up": "..",
        "own/6-back": "..", "own/7-link": "7-link",
    }.items():  # fmt: skip
        (tmp_path / "set" / name).symlink_to(target)
    dataset = load(tmp_path / "set")
    assert ids(dataset) == ["1-more/c.png", "1-more/deep/d.png", "a.png", "e.png", "own/b.png"]
    up = f"linked folder around this one: {tmp_path.resolve()}"
    already = "folder read already: as "
    assert dict(dataset.skipped) == {
        "2-deep": f"{already}1-more/deep",
        "3-own": f"{already}own",
        "4-self": f"{already}.",
        "5-up": up,
        "own/6-back": f"{already}.",
    }


def test_a_linked_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    save(tmp_path / "set/a.png")
    (tmp_path / "set/sub").mkdir()
    scan = os.scandir

    def refusing(path):
        if os.fspath(path).endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ValueError, match=r"cannot read folder .*sub: Permission denied"):
        load(tmp_path / "set")
