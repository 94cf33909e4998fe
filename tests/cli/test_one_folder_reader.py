"""Proves that training and evaluation see the same pictures, captions and faults of any folder."""

import io
import json
import os
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from rich.console import Console

from tinydiffusion.datasets.folder import FolderDataset
from tinydiffusion.evaluation.folder import FolderPictures
from tinydiffusion.pictures.packed import TooManySkippedError
from tinydiffusion.pictures.views import view_of

SIZE = 8

# ---- what a folder may hold ------------------------------------------------------------------


def draw(number, size=(12, 10)):
    noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def plain(folder, number):
    draw(number).save(folder / f"{number}.png")


def turned(folder, number):
    exif = Image.Exif()
    exif[0x0112] = 6
    draw(number, (10, 12)).save(folder / f"{number}.png", exif=exif)


def transparent(folder, number):
    draw(number).convert("RGBA").save(folder / f"{number}.png")


def linked(folder, number):
    elsewhere = folder.parent / f"elsewhere-{number}"
    elsewhere.mkdir()
    draw(number).save(elsewhere / "blob", "PNG")
    (folder / f"{number}.png").symlink_to(f"../{elsewhere.name}/blob")


def dangling(folder, number):
    (folder / f"{number}.png").symlink_to("nowhere.png")


def cut(folder, number):
    plain(folder, number)
    data = (folder / f"{number}.png").read_bytes()
    (folder / f"{number}.png").write_bytes(data[: len(data) // 2])


def empty(folder, number):
    (folder / f"{number}.png").touch()


def sub_folder(folder, number):
    (folder / f"{number}.png").mkdir()


def pipe(folder, number):
    os.mkfifo(folder / f"{number}.png")


def grid(folder, number):
    about = PngImagePlugin.PngInfo()
    about.add_text("Software", "tinydiffusion")
    draw(number).save(folder / f"{number}.png", pnginfo=about)


PICTURES = [
    plain, turned, transparent, linked, dangling, cut, empty, sub_folder, pipe, grid
]  # fmt: skip
CAPTIONS = {  # what lies beside the picture N.png
    "none": {},
    "text": {"N.txt": "a caption"},
    "blank": {"N.txt": " \n"},
    "caption": {"N.caption": "another"},
    "upper": {"N.TXT": "loud"},
    "double": {"N.png.txt": "twice"},
    "json": {"N.json": '{"caption": ["one", "two"]}'},
    "doubtful": {"N.json": '{"caption": "one", "prompt": "two"}'},
    "two": {"N.txt": "a", "N.caption": "b"},
    "control": {"N.txt": "a\x01b"},
    "long": {"N.txt": "x" * 10_001},
    "bytes": {"N.txt": b"caf\xe9"},
    "folder": {"N.txt": None},
}


def write_beside(folder, number, kind):
    for name, content in CAPTIONS[kind].items():
        file = folder / name.replace("N", str(number))
        if content is None:
            file.mkdir()
        else:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())


# ---- the two views ---------------------------------------------------------------------------


class Seen:
    """What training makes of a folder, and what evaluation does."""

    def __init__(self, folder, **options) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                dataset = FolderDataset(path=folder, size=SIZE, **options)
                scan = dataset.scan
            except TooManySkippedError as error:
                scan = error.scan
        self.training = {
            sample.id: (_first(sample.caption), scan.pixels(i)[:, :SIZE, :SIZE])
            for i, sample in enumerate(scan.samples)
        }
        self.skipped = dict(scan.skipped)
        self.said = [str(warning.message) for warning in caught]
        class_folders = options.get("captions") == "folder"
        self.pictures = pictures = FolderPictures(
            "reference", folder, view=view_of(SIZE), class_folders=class_folders,
            console=Console(file=io.StringIO()),
        )  # fmt: skip
        batch = pictures.read(range(len(pictures)))
        names = [pictures.files[i].name for i in batch["id"].tolist()]
        rows = zip(names, batch["prompt"], batch["image"], strict=True)
        self.measured = {name: (prompt, image) for name, prompt, image in rows}

    def check_same(self) -> None:
        captioned = {name: row for name, row in self.measured.items() if row[0]}
        assert {n: caption for n, (caption, _) in captioned.items()} == {
            n: caption for n, (caption, _) in self.training.items()
        }
        for name, (_, pixels) in captioned.items():
            assert torch.equal(pixels, self.training[name][1]), name
        left_out = dict(self.pictures.left_out)
        expected = {**left_out, **self.pictures.unreadable, **self.pictures.uncaptioned}
        assert self.skipped.keys() == expected.keys()
        for name, reason in self.skipped.items():  # of a grid, training sees the caption first
            grid_too = name in left_out and "caption" in reason
            assert reason == expected[name] or grid_too, (name, reason, expected[name])
        assert self.measured.keys() & (left_out.keys() | self.pictures.unreadable.keys()) == set()


def _first(caption):
    return caption if isinstance(caption, str) else caption[0]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(PICTURES), st.sampled_from(sorted(CAPTIONS))), max_size=6)
)
def test_any_mixture_of_pictures_and_caption_files(tmp_path_factory, mixture):
    folder = tmp_path_factory.mktemp("mixed") / "set"
    folder.mkdir()
    for number, (picture, caption) in enumerate([(plain, "text"), (turned, "text"), *mixture]):
        picture(folder, number)
        write_beside(folder, number, caption)
    Seen(folder).check_same()


ROWS = [("0.png", "zero"), ("1.png", "one"), ("1.png", "uno"), ("sub/2.png", "two"), ("9.png", "x")]


def delimited(delimiter, column="text"):
    lines = [("file_name", column), *ROWS]
    return "".join(delimiter.join(line) + "\n" for line in lines)


TABLES = {
    "metadata.csv": delimited(","),
    "METADATA.CSV": delimited(";"),
    "Metadata.tsv": delimited("\t"),
    "metadata.jsonl": "".join(json.dumps({"file_name": n, "text": t}) + "\n" for n, t in ROWS),
    "metadata.jsonl ": "".join(
        json.dumps({"file_name": n, "text": [t, "more"]}) + "\n" for n, t in ROWS[1:]
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_any_kind_of_table(tmp_path, name):
    folder = tmp_path / "set"
    (folder / "sub").mkdir(parents=True)
    plain(folder, 0)
    turned(folder, 1)
    linked(folder / "sub", 2)
    plain(folder, 3)
    (folder / name.strip()).write_text(TABLES[name])
    seen = Seen(folder)
    seen.check_same()
    assert seen.training.keys() >= {"1.png", "sub/2.png"}
    assert seen.skipped["3.png"] == f"not listed in {name.strip()}"
    assert seen.skipped["9.png"] == "missing or not a file"


def test_linked_folders_hidden_names_and_circles(tmp_path):
    folder, more = tmp_path / "set", tmp_path / "more"
    for number, place in enumerate([folder, folder / "sub", more, folder / ".hidden"]):
        place.mkdir()
        plain(place, number)
        write_beside(place, number, "text")
    for name, target in {
        "sub/more": "../../more",
        "again": "sub",
        "round": ".",
        "up": "..",
    }.items():
        (folder / name).symlink_to(target)
    plain(folder, 5)
    (folder / "5.txt").symlink_to("0.txt")
    seen = Seen(folder)
    seen.check_same()
    assert list(seen.training) == ["0.png", "5.png", "sub/1.png", "sub/more/2.png"]
    assert seen.skipped.keys() == {"again", "round", "up"}


def test_names_of_folders(tmp_path):
    for number, folder in enumerate([tmp_path / "cats", tmp_path / "big_dogs", tmp_path]):
        folder.mkdir(exist_ok=True)
        plain(folder, number)
    seen = Seen(tmp_path, captions="folder")
    seen.check_same()
    assert {caption for caption, _ in seen.training.values()} == {"cats", "big dogs"}
    assert seen.skipped.keys() == {"2.png"}


def test_remarks_are_the_same(tmp_path):
    for number in range(3):
        plain(tmp_path, number)
        write_beside(tmp_path, number, "upper")
    (tmp_path / "metadata.csv").write_text("id,label\n0,cat\n")
    seen = Seen(tmp_path)
    seen.check_same()
    assert len(seen.said) == 2
    assert seen.said == seen.pictures.remarks()
