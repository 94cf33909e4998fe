"""Proves that `validation.fraction` divides a set by the content of its pictures."""

import shutil

import pytest
import torch
from picture_toys import noise

from tinydiffusion.build import build_training, build_validation, check_plugins
from tinydiffusion.config import Config, ConfigError


@pytest.fixture
def folder(tmp_path):
    """Forty pictures, eight of them twice."""
    root = tmp_path / "set"
    root.mkdir()
    for number in range(40):
        noise(8, seed=number).save(root / f"{number:02}.png")
        (root / f"{number:02}.txt").write_text(f"picture {number}")
        if number < 8:
            shutil.copy(root / f"{number:02}.png", root / f"{number:02}-again.png")
            (root / f"{number:02}-again.txt").write_text("again")
    return root


def config(folder, validation, **options):
    dataset = {"name": "folder", "path": str(folder), "size": 8, **options}
    return Config(dataset=dataset, validation=validation)


def ids(dataset):
    return {dataset[i]["id"] for i in range(len(dataset))}


def pixels(dataset):
    return {dataset[i]["image"].numpy().tobytes() for i in range(len(dataset))}


def sides(settings):
    return build_training(settings), build_validation(settings)


def test_the_sides_make_the_whole_and_share_no_pixels(folder):
    training, held_out = sides(config(folder, {"fraction": 0.3}))
    assert len(training) + len(held_out) == 48
    assert not ids(training) & ids(held_out)
    assert not pixels(training) & pixels(held_out)
    assert 4 <= len(held_out) <= 24
    assert set(training.fingerprints()) == ids(training)
    assert len(training.captions()) == len(training)


def test_a_picture_keeps_its_side_when_others_come_or_go(folder):
    settings = config(folder, {"fraction": 0.3})
    before = ids(build_validation(settings))
    for number in range(0, 20, 2):
        (folder / f"{number:02}.png").unlink()
    noise(8, seed=99).save(folder / "new.png")
    (folder / "new.txt").write_text("new")
    after = build_validation(settings)
    left = {f"{n:02}.png" for n in range(0, 20, 2)} | {"new.png"}
    assert ids(after) - left == before - left


def test_a_larger_fraction_holds_the_smaller(folder):
    small, large = (build_validation(config(folder, {"fraction": f})) for f in (0.1, 0.5))
    assert ids(small) < ids(large)


def test_visits_show_the_right_pictures(folder):
    for dataset in sides(config(folder, {"fraction": 0.3}, flip=False)):
        for index in range(len(dataset)):
            visit = dataset.augment(index, torch.Generator())
            assert visit["id"] == dataset[index]["id"]
            assert torch.equal(visit["image"], dataset[index]["image"])


def test_a_mixture_is_divided_set_by_set(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other")
    sets = [{"name": "folder", "path": str(p)} for p in (folder, tmp_path / "other")]
    settings = Config(
        dataset={"name": "mixture", "sets": sets, "size": 8}, validation={"fraction": 0.3}
    )
    training, held_out = sides(settings)
    assert len(training) + len(held_out) == 96
    assert not pixels(training) & pixels(held_out)


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ({"fraction": 0}, r"must be in \(0, 1\), got 0"),
        ({"fraction": 1.0}, r"must be in \(0, 1\)"),
        ({"fraction": "x"}, r"must be in \(0, 1\), got 'x'"),
        ({"fraction": 0.1, "path": "y"}, r"leave out validation\.path"),
    ],
)
def test_wrong_fractions_are_refused_before_anything_is_read(validation, message):
    with pytest.raises(ConfigError, match=message):
        check_plugins(config("nowhere", validation))


def test_sets_whose_pictures_are_not_known_are_refused():
    settings = Config(dataset={"name": "scenes"}, validation={"fraction": 0.1})
    check_plugins(settings)
    with pytest.raises(ConfigError, match=r"'scenes' are not known .* set of its own"):
        build_training(settings)


def test_a_side_without_pictures_is_refused(folder):
    with pytest.raises(ValueError, match="none are left on one side"):
        build_validation(config(folder, {"fraction": 1e-9}))
