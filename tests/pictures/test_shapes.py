"""Proves that examples of any height and width come out cut or padded as asked for, everywhere."""

import numpy as np
import pytest
import torch
from picture_toys import encode, noise
from PIL import Image

from tinydiffusion.abilities import Augmented
from tinydiffusion.datasets.folder import FolderDataset
from tinydiffusion.datasets.shards import ShardsDataset
from tinydiffusion.datasets.tar import TarDataset
from tinydiffusion.pictures.brightness import Brightness
from tinydiffusion.pictures.decode import fit_to, load_picture, scaled_size
from tinydiffusion.pictures.scan import Found, scan
from tinydiffusion.pictures.views import middle_window, view_of

SHAPES = [(64, 48), (48, 64), (200, 40), (40, 200), (41, 43)]
SIZES = [(32, 32), (32, 48), (40, 24)]


def half_and_half(width, height):
    """Left red, right blue."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (width // 2, 0, width, height))
    return image


@pytest.mark.parametrize("picture", SHAPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_fit_to_gives_the_size_and_keeps_proportions(picture, size, fit):
    image = fit_to(Image.new("RGB", picture, "red"), size, fit)
    assert image.size == size[::-1]
    red = (np.asarray(image) == (255, 0, 0)).all(axis=2)
    if fit == "crop":
        assert red.all()
    else:
        across, along = int(red.any(axis=0).sum()), int(red.any(axis=1).sum())
        assert across == size[1] or along == size[0]
        scale = min(size[1] / picture[0], size[0] / picture[1])
        assert abs(across - picture[0] * scale) <= 1
        assert abs(along - picture[1] * scale) <= 1
        assert (np.asarray(image)[~red] == 255).all()


@pytest.mark.parametrize("picture", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_covering_covers_and_fitting_fits(picture, size):
    width, height = scaled_size(picture, size, "crop")
    assert width >= size[1]
    assert height >= size[0]
    assert width == size[1] or height == size[0]
    width, height = scaled_size(picture, size, "pad")
    assert width <= size[1]
    assert height <= size[0]
    assert width == size[1] or height == size[0]


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_drafted_to_the_same_picture_upright_or_not(fit, orientation):
    image = half_and_half(1600, 640)
    turned = image.rotate(90, expand=True) if orientation == 6 else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(turned, "JPEG", quality=95, exif=exif)
    drafted = fit_to(load_picture(content, (32, 48), fit=fit).image, (32, 48), fit)
    whole = fit_to(load_picture(content).image, (32, 48), fit)
    difference = np.asarray(drafted, float) - np.asarray(whole, float)
    assert np.abs(difference).mean() < 2


@pytest.mark.parametrize(
    ("options", "side", "usable"),
    [
        ({"size": [32, 48]}, (48, 32), True),
        ({"size": [32, 48]}, (47, 64), False),
        ({"size": [32, 48]}, (64, 31), False),
        ({"size": [32, 48], "fit": "pad"}, (48, 8), True),
        ({"size": [32, 48], "fit": "pad"}, (47, 31), False),
    ],
)
def test_no_picture_is_enlarged(options, side, usable):
    found = [Found("a", encode(half_and_half(*side)), "x")]
    result = scan(found, view_of(options.pop("size"), **options))
    assert len(result.samples) == usable
    if not usable:
        assert result.skipped[0].reason.startswith("smaller than size=[32, 48]: ")


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_folder_tar_and_shards_give_the_same(tmp_path, fit):
    import tarfile

    for number, shape in enumerate(SHAPES):
        noise(220, seed=number).crop((0, 0, *shape)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"picture {number}")
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for file in sorted(tmp_path.glob("*.[pt][nx]*")):
            tar.add(file, file.name)
    options = {"size": [24, 40], "fit": fit, "flip": True}
    sets = [FolderDataset(path=tmp_path, **options)]
    sets += [plugin(path=tmp_path / "s.tar", **options) for plugin in (TarDataset, ShardsDataset)]
    assert [len(dataset) for dataset in sets] == [5, 5, 5]
    for index in range(5):
        images = [dataset[index]["image"] for dataset in sets]
        assert images[0].shape == (3, 24, 40)
        assert all(torch.equal(image, images[0]) for image in images)


def test_a_random_window_has_the_shape_and_moves(tmp_path):
    noise(64).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("noise")
    dataset = FolderDataset(path=tmp_path, size=[16, 48], crop="random")
    assert isinstance(dataset, Augmented)
    visits = [
        dataset.augment(0, torch.Generator().manual_seed(seed))["image"] for seed in range(20)
    ]
    assert {tuple(visit.shape) for visit in visits} == {(3, 16, 48)}
    assert len({visit.numpy().tobytes() for visit in visits}) > 5
    assert torch.equal(dataset[0]["image"], middle_window(dataset.scan.pixels(0), (16, 48)))


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        ([1, 2, 3], {}, "size must be"),
        ([], {}, "size must be"),
        ([0, 4], {}, "size must be at least 1"),
        (8, {"fit": "stretch"}, "fit must be one of crop, pad"),
        (8, {"fit": "pad", "crop": "random"}, "leave out one"),
    ],
)
def test_wrong_options_are_named(size, options, message):
    with pytest.raises(ValueError, match=message):
        view_of(size, **options)


@pytest.mark.parametrize(
    ("levels", "word"),
    [((0, 4), "black"), ((250, 256), "white"), ((0, 256), None), ((60, 62), None)],
)
def test_sets_that_are_nearly_black_or_white_are_said(levels, word):
    brightness = Brightness()
    generator = torch.Generator().manual_seed(0)
    for side in (8, 100):
        brightness.add(torch.randint(*levels, (3, side, side), generator=generator).byte())
    said = brightness.describe()
    assert (f"nearly {word}" in said) if word else not said


def test_thin_lines_on_white_are_a_picture():
    image = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    image[:, ::16] = 0
    brightness = Brightness()
    brightness.add(image)
    assert brightness.describe() == ""
