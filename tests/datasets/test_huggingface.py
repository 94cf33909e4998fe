"""Proves that local Hugging Face data sets give the same examples as the files they hold."""

import io
import json
import sys

import pytest
import torch
from PIL import Image

from tinydiffusion.datasets.folder import FolderDataset
from tinydiffusion.datasets.huggingface import HuggingFaceDataset
from tinydiffusion.registry import PluginError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def png(color, size=(8, 8)):
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def write_parquet(folder, **columns):
    datasets.Dataset.from_dict(columns).to_parquet(folder / "train.parquet")
    return str(folder)


def test_imagefolder_equals_the_folder_plug_in(tmp_path):
    for number, name in enumerate(["a.png", "b.png", "c.png"]):
        Image.new("RGB", (12, 9), (number, 2, 3)).save(tmp_path / name)
    lines = [json.dumps({"file_name": f"{n}.png", "text": f"letter {n}"}) for n in "abc"]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    ours = FolderDataset(path=tmp_path, size=8)
    theirs = HuggingFaceDataset(path=str(tmp_path), size=8)
    assert len(ours) == len(theirs) == 3
    for index in range(3):
        assert theirs[index]["id"] == f"row-{index}"
        assert theirs[index]["caption"] == ours[index]["caption"]
        torch.testing.assert_close(theirs[index]["image"], ours[index]["image"])


@pytest.mark.parametrize("wrap", [lambda b: b, lambda b: {"bytes": b, "path": None}])
def test_parquet_with_bytes_and_caption_lists(tmp_path, wrap):
    path = write_parquet(
        tmp_path, pic=[wrap(png("red")), wrap(png("blue"))], words=[["a", "b"], ["c"]]
    )
    dataset = HuggingFaceDataset(path=path, image_column="pic", caption_column="words", size=8)
    assert [dataset[i]["caption"] for i in range(2)] == [["a", "b"], ["c"]]
    assert dataset[1]["image"][:, 0, 0].tolist() == [0, 0, 255]


def test_split_slice_and_limit(tmp_path):
    path = write_parquet(tmp_path, image=[png((n, 0, 0)) for n in range(6)], text=["x"] * 6)
    dataset = HuggingFaceDataset(path=path, split="train[2:]", limit=3, size=8)
    assert [int(dataset[i]["image"][0, 0, 0]) for i in range(len(dataset))] == [2, 3, 4]


def test_skipped_rows_are_named(tmp_path):
    images = [png("red"), None, png("red")[:40], png("red", (4, 4)), *[png("red")] * 4]
    texts = ["x", "x", "x", "x", None, "x", "x", "x"]
    dataset = HuggingFaceDataset(path=write_parquet(tmp_path, image=images, text=texts), size=8)
    assert [dataset[i]["id"] for i in range(len(dataset))] == ["row-0", "row-5", "row-6", "row-7"]
    assert [(s.path, s.reason.partition(":")[0]) for s in dataset.skipped] == [
        ("row-1", "missing or not a file"),
        ("row-2", "unreadable"),
        ("row-3", "smaller than size=8"),
        ("row-4", "without caption"),
    ]


def test_visits_are_drawn_from_the_generator(tmp_path):
    image = Image.new("RGB", (40, 8))
    image.putdata([(x, 0, 0) for _ in range(8) for x in range(40)])
    file = io.BytesIO()
    image.save(file, "PNG")
    path = write_parquet(tmp_path, image=[file.getvalue()], text=["x"])
    dataset = HuggingFaceDataset(path=path, size=8, crop="random", flip=True)

    def visits(seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.stack([dataset.augment(0, generator)["image"] for _ in range(8)])

    torch.testing.assert_close(visits(1), visits(1))
    assert not torch.equal(visits(1), visits(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "img"}, "no column 'img'.*its columns are image, text, label"),
        ({"caption_column": "txt"}, r"no column 'txt' \(did you mean 'text'\?\)"),
        ({"caption_column": "label"}, "row 0: 'label' must be text or a list of texts, got 7"),
        ({"image_column": "text"}, "image_column 'text' must hold pictures"),
        ({"split": "test"}, 'Unknown split "test"'),
        ({"crop": "middle"}, "crop must be one of center, random"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, message):
    path = write_parquet(tmp_path, image=[png("red")], text=["x"], label=[7])
    with pytest.raises(ValueError, match=message):
        HuggingFaceDataset(path=path, size=8, **options)


def test_missing_data_set_is_named(tmp_path):
    with pytest.raises(ValueError, match="cannot load data set"):
        HuggingFaceDataset(path=str(tmp_path / "none"))


def test_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PluginError, match=r"pip install 'tinydiffusion\[data\]'"):
        HuggingFaceDataset(path="anything")
