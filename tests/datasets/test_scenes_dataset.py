"""Examples depend on (seed, split, index) alone; options outside the allowed are refused."""

import pytest
import torch

from tinydiffusion import registry
from tinydiffusion.datasets.scenes import ScenesDataset
from tinydiffusion.scenes.captions import captions
from tinydiffusion.scenes.sampling import combinations
from tinydiffusion.scenes.vocabulary import CATEGORIES


def test_an_example():
    example = ScenesDataset(size=64)[17]
    assert example["image"].shape == (3, 64, 64)
    assert example["image"].dtype == torch.uint8
    assert example["id"] == "scenes-train-000017"
    assert len(example["caption"]) >= 4


def test_an_example_depends_on_seed_split_and_index_alone():
    long, short = ScenesDataset(num_scenes=100), ScenesDataset(num_scenes=10)
    _ = long[99]
    torch.testing.assert_close(long[3]["image"], short[3]["image"], rtol=0, atol=0)
    assert long[3]["caption"] == short[3]["caption"]
    assert long.scene(3) != long.scene(4)
    assert long.scene(3) != ScenesDataset(seed=1).scene(3)


def test_the_size_changes_the_pixels_and_nothing_else():
    assert ScenesDataset(size=64).scene(5) == ScenesDataset(size=32).scene(5)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_scenes_come_from_the_split_and_all_categories(split):
    data = ScenesDataset(split=split, categories=CATEGORIES)
    allowed = {c: set(combinations(c, split)) for c in CATEGORIES}
    found = set()
    for i in range(200):
        description = data.scene(i).description.canonical()
        homes = [c for c in CATEGORIES if description in allowed[c]]
        assert len(homes) == 1
        found.update(homes)
    assert found == set(CATEGORIES)


def test_captions_are_those_of_the_scene():
    data = ScenesDataset()
    assert data[8]["caption"] == captions(data.scene(8))


def test_it_is_a_plug_in():
    assert len(registry.create("dataset", "scenes", num_scenes=7)) == 7


@pytest.mark.parametrize(
    "options",
    [
        {"size": 31},
        {"size": 8},
        {"num_scenes": 0},
        {"seed": -1},
        {"categories": ()},
        {"categories": ("three_objects",)},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ScenesDataset(**options)


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split='test' is not one of train, held_out"):
        ScenesDataset(split="test")


@pytest.mark.parametrize("index", [-1, 5])
def test_index_outside(index):
    with pytest.raises(IndexError, match=f"index {index} is not in"):
        ScenesDataset(num_scenes=5)[index]
