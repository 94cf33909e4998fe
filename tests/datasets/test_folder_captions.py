"""Proves that captions of every kind of file, table and folder name are read or doubted aloud."""

import json

import pytest
from PIL import Image

from tinydiffusion.datasets.folder import FolderDataset


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (10, 20, 30)).save(path, "PNG")


def write_jsonl(folder, *rows):
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def row(name, text):
    return {"file_name": name, "text": text}


def load(folder, **options):
    return FolderDataset(path=folder, size=8, **options)


def captions(dataset):
    return [dataset[i]["caption"] for i in range(len(dataset))]


def fails(folder, message, **options):
    with pytest.raises(ValueError, match=message) as caught:
        load(folder, **options)
    assert "\n" not in str(caught.value)


# ---- captions under other names and in other tables ------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.TXT", "red"),
        ("a.Txt", "red"),
        ("a.png.txt", "red"),
        ("a.png.caption", "red"),
        ("a.json", '{"text": "red", "width": 8}'),
        ("a.json", '{"caption": "red"}'),
        ("a.png.JSON", '{"prompt": " red "}'),
    ],
)
def test_captions_under_near_names_are_read_and_said(tmp_path, name, content):
    save(tmp_path / "a.png")
    (tmp_path / name).write_text(content)
    with pytest.warns(match=f"captions of 1 pictures are in files like {name}"):
        assert captions(load(tmp_path)) == ["red"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"caption": "red", "prompt": "blue"}', "a.json: has caption and prompt; say which key"),
        ('{"label": "red"}', "a.json: no 'text'; it has 'label'; say which key"),
        ('{"text": 3}', "a.json: 'text' must be text"),
        ("[3]", "a.json: must be an object"),
        (" ", "a.json: not valid JSON"),
        (json.dumps("x" * 2**20), "a.json has over 1048576 bytes"),
    ],
)
def test_json_that_is_in_doubt_costs_its_picture_and_says_why(tmp_path, content, reason):
    for name in "ab":
        save(tmp_path / f"{name}.png")
    (tmp_path / "b.txt").write_text("blue")
    (tmp_path / "a.json").write_text(content)
    ((picture, said),) = load(tmp_path).skipped
    assert picture == "a.png"
    assert said.startswith(f"unreadable caption: {reason}")


def test_text_beside_json_is_the_caption(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("red")
    (tmp_path / "a.json").write_text('{"text": "blue"}')
    assert captions(load(tmp_path)) == ["red"]


def test_two_caption_files_of_any_names_are_in_doubt(tmp_path):
    for name in "abc":
        save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(name)
    (tmp_path / "a.png.txt").write_text("another")
    assert load(tmp_path).skipped == [("a.png", "with two captions: a.txt and a.png.txt")]


def test_empty_caption_files_are_called_empty(tmp_path):
    for name in "abc":
        save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").touch()
    fails(tmp_path, r"no captions in .*: 3 caption files are empty \(first a\.txt\)")


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.tsv", "METADATA.CSV"])
@pytest.mark.parametrize(("delimiter", "word"), [(",", "comma"), (";", "semicolon"), ("\t", "tab")])
def test_tables_are_read_by_the_delimiter_that_they_have(tmp_path, name, delimiter, word):
    save(tmp_path / "a.png")
    (tmp_path / name).write_text(f"file_name{delimiter}text\na.png{delimiter}red\n")
    usual = "tab" if name.endswith("tsv") else "comma"
    if word == usual:
        assert captions(load(tmp_path)) == ["red"]
    else:
        with pytest.warns(match=f"{name}: its columns are separated by {word}s, not by {usual}s"):
            assert captions(load(tmp_path)) == ["red"]


def test_rows_of_one_picture_are_its_captions_in_every_kind_of_table(tmp_path):
    for name in ("a.png", "b.png"):
        save(tmp_path / name)
    rows = [("a.png", "red"), ("b.png", "blue"), ("a.png", "a red one"), ("a.png", "red")]
    lines = ["file_name,text", *(",".join(each) for each in rows)]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    with pytest.warns(match="1 rows repeat the picture and caption of another"):
        assert captions(load(tmp_path)) == [["red", "a red one"], "blue"]
    (tmp_path / "metadata.csv").unlink()
    write_jsonl(tmp_path, row("a.png", ["red", "rot"]), row("b.png", ""), row("./a.png", "rouge"),
                row("b.png", "blue"))  # fmt: skip
    assert captions(load(tmp_path)) == [["red", "rot", "rouge"], "blue"]


def test_a_table_about_something_else_leaves_caption_files_in_force(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("id,label\n0,cat\n")
    fails(tmp_path, "no captions in .*: metadata.csv: no 'file_name'; it has 'id', 'label'")
    (tmp_path / "a.txt").write_text("red")
    with pytest.warns(match="not read as metadata: metadata.csv: no 'file_name'"):
        assert captions(load(tmp_path)) == ["red"]


def test_a_caption_column_without_a_table_is_of_no_use(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("red")
    with pytest.warns(match="caption_column 'title' is of no use"):
        load(tmp_path, caption_column="title")


# ---- names of folders ------------------------------------------------------------------------


def test_names_of_folders_are_captions_where_that_is_asked_for(tmp_path):
    for name in ("cats/001.png", "wild/big_black-dogs/x.png", "top.png"):
        save(tmp_path / name)
    (tmp_path / "cats/001.txt").write_text("a cat")
    with pytest.warns(match=r"caption files not read: 1 \(first cats/001\.txt\)"):
        dataset = load(tmp_path, captions="folder")
    assert captions(dataset) == ["cats", "big black dogs"]
    assert dataset.skipped == [
        ("top.png", "without caption: in no sub-folder whose name would be one")
    ]
    fails(tmp_path, "captions must be one of auto, folder, got 'file'", captions="file")


def test_class_folders_are_told_the_option(tmp_path):
    for name in ("cats/001.png", "dogs/001.png"):
        save(tmp_path / name)
    fails(tmp_path, "no captions in .*; or set dataset.captions: folder")
    save(tmp_path / "top.png")
    with pytest.raises(ValueError, match="no captions in") as caught:
        load(tmp_path)
    assert "captions: folder" not in str(caught.value)


def test_pictures_outside_of_every_folder_have_no_name(tmp_path):
    save(tmp_path / "a.png")
    fails(tmp_path, "captions: folder takes them from sub-folders' names", captions="folder")
