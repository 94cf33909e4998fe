"""Proves that a folder gives its captioned pictures and that every fault is named."""

import json
import os

import pytest
import torch
from PIL import Image

from tinydiffusion.datasets.folder import FolderDataset


def save(path, size=(8, 8), color=(10, 20, 30), kind="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, kind)


def write_jsonl(folder, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def row(name, text="a picture"):
    return {"file_name": name, "text": text}


def load(folder, size=8, **options):
    return FolderDataset(path=folder, size=size, **options)


def ids(dataset):
    return [dataset[i]["id"] for i in range(len(dataset))]


def captions(dataset):
    return [dataset[i]["caption"] for i in range(len(dataset))]


@pytest.fixture
def folder(tmp_path):
    """Three good pictures a.png, b.png and sub/c.png, listed out of order."""
    for name in ("b.png", "a.png", "sub/c.png"):
        save(tmp_path / name)
    write_jsonl(
        tmp_path, row("sub/c.png", "see"), row("b.png", ["bee", "be"]), row("./a.png", "ay")
    )
    return tmp_path


def fails(folder, message, **options):
    with pytest.raises(ValueError, match=message) as caught:
        load(folder, **options)
    assert "\n" not in str(caught.value)


# ---- layouts ---------------------------------------------------------------------------------


def test_metadata_jsonl(folder):
    dataset = load(folder)
    assert ids(dataset) == ["a.png", "b.png", "sub/c.png"]
    assert captions(dataset) == ["ay", ["bee", "be"], "see"]
    assert dataset.skipped == []
    assert dataset[0]["image"].tolist() == [[[v] * 8] * 8 for v in (10, 20, 30)]


def test_metadata_csv_with_quotes_crlf_and_bom(tmp_path):
    for name in ("a.png", "b.png"):
        save(tmp_path / name)
    text = 'file_name,text\r\na.png,"red, ""big""\r\nand round"\r\n\r\nb.png,blå\r\n'
    (tmp_path / "metadata.csv").write_bytes(text.encode("utf-8-sig"))
    assert captions(load(tmp_path)) == ['red, "big"\r\nand round', "blå"]


def test_metadata_jsonl_with_bom_crlf_and_unicode_line_ends(tmp_path):
    save(tmp_path / "a.png")
    line = json.dumps(row("a.png", "one\u2028two"), ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_bytes(f"{line}\r\n\r\n".encode("utf-8-sig"))
    assert captions(load(tmp_path)) == ["one\u2028two"]


def test_another_caption_column(tmp_path):
    save(tmp_path / "a.png")
    write_jsonl(tmp_path, {"file_name": "a.png", "keywords": ["gold", " ", "medal "]})
    assert captions(load(tmp_path, caption_column="keywords")) == [["gold", "medal"]]


def test_sidecars(tmp_path):
    for name in ("a.PNG", "sub/b.v2.png", ".hidden.png", ".cache/c.png"):
        save(tmp_path / name)
    (tmp_path / "a.txt").write_bytes("\ufeff  first\nsecond \n".encode())
    (tmp_path / "sub/b.v2.caption").write_text("bee")
    dataset = load(tmp_path)
    assert ids(dataset) == ["a.PNG", "sub/b.v2.png"]
    assert captions(dataset) == ["first\nsecond", "bee"]


def test_content_decides_the_kind(tmp_path):
    save(tmp_path / "a.jpg", kind="PNG")
    save(tmp_path / "no_suffix", kind="WEBP")
    write_jsonl(tmp_path, row("a.jpg"), row("no_suffix"))
    assert ids(load(tmp_path)) == ["a.jpg", "no_suffix"]


# ---- what is skipped -------------------------------------------------------------------------


def test_skipped_pictures_are_named_with_their_reason(tmp_path):
    for name in "abcdefghijk":
        save(tmp_path / f"{name}.png")
    noise = torch.randint(256, (64, 64, 3), generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.byte().numpy()).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:5000])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "folder.jpg").mkdir()
    save(tmp_path / "small.png", (1, 400))
    bad = ("cut.png", "empty.png", "text.png", "folder.jpg", "small.png", "gone.png")
    write_jsonl(
        tmp_path,
        *(row(f"{name}.png") for name in "abcdefgh"),
        *(row(name) for name in bad),
        row("i.png", None),
        row("j.png", ["", " "]),
    )
    fails(tmp_path, "9 of 17 .* 3 unreadable .first cut.png: .*; 2 missing .*; 2 without caption")
    for name in "lm":
        save(tmp_path / f"{name}.png")
    with (tmp_path / "metadata.jsonl").open("a") as file:
        file.writelines(json.dumps(row(f"{name}.png")) + "\n" for name in "lm")
    dataset = load(tmp_path)
    assert ids(dataset) == [f"{name}.png" for name in "abcdefghlm"]
    reasons = {path: reason.partition(":")[0] for path, reason in dataset.skipped}
    assert reasons == {
        "cut.png": "unreadable",
        "empty.png": "unreadable",
        "folder.jpg": "missing or not a file",
        "gone.png": "missing or not a file",
        "i.png": "without caption",
        "j.png": "without caption",
        "k.png": "not listed in metadata.jsonl",
        "small.png": "smaller than size=8",
        "text.png": "unreadable",
    }


def test_overlong_captions_are_skipped(folder):
    write_jsonl(folder, row("a.png"), row("b.png"), row("sub/c.png", "x" * 10_001))
    assert load(folder).skipped == [("sub/c.png", "with a caption over 10000 characters")]


def test_sidecar_faults_are_skipped(tmp_path):
    for name in "abcdef":
        save(tmp_path / f"{name}.png")
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_text(name)
    (tmp_path / "d.caption").write_text("another")
    (tmp_path / "e.txt").write_text(" \n")
    dataset = load(tmp_path)
    assert ids(dataset) == ["a.png", "b.png", "c.png"]
    assert dataset.skipped == [
        ("d.png", "with two captions: d.caption and d.txt"),
        ("e.png", "with an empty caption file: e.txt"),
        ("f.png", "without caption"),
    ]


def test_nothing_usable_is_an_error(tmp_path):
    save(tmp_path / "a.png", (7, 9))
    write_jsonl(tmp_path, row("a.png"))
    fails(tmp_path, "1 of 1 pictures cannot be used.*smaller than size=8 .first a.png: 7x9")


# ---- errors ----------------------------------------------------------------------------------


def test_folder_faults(tmp_path):
    fails(tmp_path / "none", "no such folder")
    fails(tmp_path, "no pictures in")
    (tmp_path / "file").touch()
    fails(tmp_path / "file", "not a folder")


def test_no_captions_names_the_layouts(tmp_path):
    save(tmp_path / "a.png")
    fails(tmp_path, r"no captions in .*metadata\.jsonl.*metadata\.csv.*a\.txt.*beside a\.png")


@pytest.mark.parametrize("name", ["metadata.json1", "metadata.json", "Metadata.jsnl", "meta.csv"])
def test_near_miss_names_get_a_hint(tmp_path, name):
    save(tmp_path / "a.png")
    (tmp_path / name).write_text("{}")
    fails(tmp_path, rf"found {name}: rename it to metadata\.(jsonl|csv|tsv)")


def test_metadata_in_sub_folders_gets_a_hint(tmp_path):
    for split in ("train", "test"):
        save(tmp_path / split / "a.png")
        write_jsonl(tmp_path / split, row("a.png"))
    fails(tmp_path, r"found test/metadata\.jsonl, train/metadata\.jsonl: set path")


def test_two_metadata_files(folder):
    (folder / "metadata.csv").write_text("file_name,text\n")
    fails(folder, r"both metadata\.csv and metadata\.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "a.png", "text": "x"', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('["a.png", "x"]', "must be an object"),
        ('{"file_name": "a.png", "txt": "x"}', "no 'text' .did you mean 'txt'"),
        ('{"image": "a.png", "text": "x"}', "no 'file_name'; it has 'image', 'text'"),
        ('{"file_name": 3, "text": "x"}', "file_name must be text, got 3"),
        ('{"file_name": "", "text": "x"}', "file_name must be text"),
        ('{"file_name": "a.png", "text": 3}', "'text' must be text or a list of texts, got 3"),
        ('{"file_name": "a.png", "text": ["x", 3]}', "'text' must be text or a list"),
        ('{"file_name": "sub//../a.png", "text": "x"}', r"without '\.\.'"),
        ('{"file_name": "../a.png", "text": "x"}', "relative to the folder"),
        ('{"file_name": "/etc/a.png", "text": "x"}', "relative to the folder"),
        (r'{"file_name": "sub\\c.png", "text": "x"}', "relative to the folder"),
        (r'{"file_name": "a\u0000.png", "text": "x"}', "no usable path"),
        (r'{"file_name": "a\ud800.png", "text": "x"}', "no usable path"),
        ('{"file_name": "~/a.png", "text": "x"}', "without '..', '~'"),
        ('{"file_name": "~me/a.png", "text": "x"}', "without '..', '~'"),
        ('{"file_name": "C:/a.png", "text": "x"}', "without .* a drive"),
        ('{"file_name": "https://host/a.png", "text": "x"}', "is an address"),
        ('{"file_name": "a.png", "text": "x", "text": "y"}', "a key comes twice"),
        ("9" * 5000, "not valid JSON"),
    ],
)
def test_bad_jsonl_line_is_named(folder, line, message):
    with (folder / "metadata.jsonl").open("a") as file:
        file.write(line + "\n")
    fails(folder, rf"metadata\.jsonl:4: .*{message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file_name,text\na.png,red, big\n", r"metadata\.csv:2: 3 fields where the header has 2"),
        ('file_name,text\na.png,"red\n', r"metadata\.csv:2: not valid CSV"),
        (
            "file_name;label\na.png;red\n",
            r"metadata\.csv:2: no 'text'; it has 'file_name', 'label'",
        ),
        ("file_name|text\na.png|red\n", r"no captions in .*metadata\.csv: no 'file_name'"),
        ("file_name,text,text\na.png,x,y\n", r"metadata\.csv:1: a column comes twice"),
        ('file_name,text\na.png,ok\nb.png,"open\n\n\n', r"metadata\.csv:3: not valid CSV"),
        ('file_name,text\na.png,"one\ntwo"\nb.png,x,y\n', r"metadata\.csv:4: 3 fields"),
        ("file_name,text\n", "lists no pictures"),
        ("", "lists no pictures"),
    ],
)
def test_bad_csv_is_named(tmp_path, content, message):
    save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text(content)
    fails(tmp_path, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9", r"not UTF-8 at byte 3 \(0xe9\)"),
        ("a cat".encode("utf-16-le"), "not text, NUL at byte 1"),
        ("a cat".encode("utf-16"), r"not UTF-8 at byte 0 \(0xff\); it looks like UTF-16"),
    ],
)
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("metadata.jsonl", r"metadata\.jsonl:3: "),
        ("metadata.csv", r"metadata\.csv:3: "),
        ("a.txt", r"a\.png: a\.txt is "),
    ],
)
def test_text_that_is_not_utf8_names_place_and_byte(tmp_path, name, place, content, message):
    save(tmp_path / "a.png")
    good = {"metadata.jsonl": b"\n\n", "metadata.csv": b"file_name,text\nb.png,b\n"}.get(name, b"")
    (tmp_path / name).write_bytes(good + content)
    fails(tmp_path, place + message)


def test_links_lead_where_they_were_made_to_lead(tmp_path):
    save(tmp_path / "outside/far.png")
    (tmp_path / "outside/far.txt").write_text("far")
    for name in ("a.png", "b.png", "c.png"):
        save(tmp_path / "set" / name)
        (tmp_path / "set" / name).with_suffix(".txt").write_text(name)
    for name in ("link.png", "link.txt"):
        (tmp_path / "set" / name).symlink_to(f"../outside/far{name[-4:]}")
    for name in ("dangling", "loop"):
        (tmp_path / f"set/{name}.txt").write_text(name)
    (tmp_path / "set/dangling.png").symlink_to("nowhere.png")
    (tmp_path / "set/loop.png").symlink_to("loop.png")
    dataset = load(tmp_path / "set")
    assert ids(dataset) == ["a.png", "b.png", "c.png", "link.png"]
    assert captions(dataset)[-1] == "far"
    assert dataset.skipped == [
        ("dangling.png", "broken link: to nowhere.png"),
        ("loop.png", "broken link: to loop.png"),
    ]
    write_jsonl(tmp_path / "set", row("a.png", "ay"), row("link.png", "linked"), row("b.png"))
    assert captions(load(tmp_path / "set")) == ["ay", "a picture", "linked"]


def test_a_snapshot_of_the_hugging_face_cache(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/abc"
    snapshot.mkdir(parents=True)
    for name in "ab":
        save(blobs / name)
        (snapshot / f"{name}.png").symlink_to(f"../../blobs/{name}")
    write_jsonl(blobs, row("a.png"), row("b.png"))
    (blobs / "metadata.jsonl").rename(blobs / "c")
    (snapshot / "metadata.jsonl").symlink_to("../../blobs/c")
    assert ids(load(snapshot)) == ["a.png", "b.png"]


def test_one_bad_caption_file_costs_its_picture_alone(tmp_path):
    for name in "abcdefghij":
        save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(name)
    for name in "abcde":
        (tmp_path / f"{name}.txt").unlink()
    (tmp_path / "a.txt").symlink_to("nowhere.txt")
    (tmp_path / "b.txt").mkdir()
    os.mkfifo(tmp_path / "c.txt")
    (tmp_path / "d.txt").write_bytes(b"caf\xe9")
    (tmp_path / "e.txt").write_text("x" * 10_000_000)
    dataset = load(tmp_path)
    assert ids(dataset) == [f"{name}.png" for name in "fghij"]
    assert dict(dataset.skipped) == {
        "a.png": "no caption: a.txt is missing or not a file",
        "b.png": "without caption",
        "c.png": "no caption: c.txt is missing or not a file",
        "d.png": "unreadable caption: d.txt is not UTF-8 at byte 3 (0xe9); save the file as UTF-8",
        "e.png": "with a caption over 10000 characters",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"crop": "centre"}, "crop must be one of center, random, got 'centre'"),
        ({"limit": 0}, "limit must be at least 1"),
    ],
)
def test_options_out_of_range(folder, options, message):
    fails(folder, message, **options)
