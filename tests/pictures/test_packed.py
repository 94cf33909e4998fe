"""Proves that examples, crops and mirrorings are what the stored pixels say."""

import json

import pytest
import torch
from PIL import Image

from tinydiffusion.abilities import Augmented
from tinydiffusion.datasets.folder import FolderDataset


def load(folder, size=8, **options):
    return FolderDataset(path=folder, size=size, **options)


def write_metadata(folder, *names):
    rows = [json.dumps({"file_name": name, "text": name}) for name in names]
    (folder / "metadata.jsonl").write_text("\n".join(rows))


def write_gradient(folder, width, height):
    """Red counts the columns, green the rows: a pixel tells where it came from."""
    image = Image.new("RGB", (width, height))
    image.putdata([(x, y, 0) for y in range(height) for x in range(width)])
    image.save(folder / "a.png")
    write_metadata(folder, "a.png")


@pytest.mark.parametrize(("width", "height", "left", "top"), [(20, 8, 6, 0), (8, 13, 0, 2)])
@pytest.mark.parametrize("crop", ["center", "random"])
def test_an_example_is_the_middle_square_whatever_the_crop(
    tmp_path, width, height, left, top, crop
):
    write_gradient(tmp_path, width, height)
    image = load(tmp_path, crop=crop, flip=True)[0]["image"]
    red, green = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="xy")
    torch.testing.assert_close(image[0].int(), (red + left).int())
    torch.testing.assert_close(image[1].int(), (green + top).int())


def test_random_crop_reaches_every_window_and_stays_inside(tmp_path):
    write_gradient(tmp_path, 12, 8)
    dataset = load(tmp_path, crop="random")
    generator = torch.Generator().manual_seed(0)
    lefts = set()
    for _ in range(100):
        image = dataset.augment(0, generator)["image"]
        assert image.shape == (3, 8, 8)
        torch.testing.assert_close(image[0, 0].int(), torch.arange(8).int() + int(image[0, 0, 0]))
        lefts.add(int(image[0, 0, 0]))
    assert lefts == {0, 1, 2, 3, 4}


def test_flip_mirrors_half_of_the_visits(tmp_path):
    write_gradient(tmp_path, 8, 8)
    dataset = load(tmp_path, flip=True)
    plain = dataset[0]["image"]
    generator = torch.Generator().manual_seed(0)
    flipped = 0
    for _ in range(400):
        image = dataset.augment(0, generator)["image"]
        mirrored = not torch.equal(image, plain)
        torch.testing.assert_close(image, plain.flip(-1) if mirrored else plain)
        flipped += mirrored
    assert 160 <= flipped <= 240


def test_a_visit_is_a_function_of_the_generator(tmp_path):
    write_gradient(tmp_path, 40, 8)
    dataset = load(tmp_path, crop="random", flip=True)
    assert isinstance(dataset, Augmented)

    def visits(seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.stack([dataset.augment(0, generator)["image"] for _ in range(8)])

    torch.testing.assert_close(visits(3), visits(3))
    assert not torch.equal(visits(3), visits(4))


@pytest.fixture
def folder(tmp_path):
    """Three pictures of one colour."""
    for name in "abc":
        Image.new("RGB", (8, 8), (10, 20, 30)).save(tmp_path / f"{name}.png")
    write_metadata(tmp_path, "a.png", "b.png", "c.png")
    return tmp_path


def test_examples_are_copies_and_indices_are_checked(folder):
    dataset = load(folder)
    dataset[0]["image"].zero_()
    assert int(dataset[0]["image"].max()) == 30
    assert dataset[-1]["id"] == "c.png"
    torch.testing.assert_close(dataset[-1]["image"], dataset[2]["image"])
    with pytest.raises(IndexError):
        dataset[3]


def test_limit_takes_the_first_usable_ones(folder):
    (folder / "a.png").write_bytes(b"")
    dataset = load(folder, limit=1)
    assert [dataset[i]["id"] for i in range(len(dataset))] == ["b.png"]
    assert [s.path for s in dataset.skipped] == ["a.png"]
