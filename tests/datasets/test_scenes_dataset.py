"""Examples depend on (seed, split, index) alone; options outside the allowed are refused."""

import hashlib

import pytest
import torch

from tinydiffusion import registry
from tinydiffusion.datasets.scenes import ScenesDataset
from tinydiffusion.scenes.captions import captions, short_captions
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
        {"size": 30, "categories": ("spelling",)},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ScenesDataset(**options)


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split='test' is not one of train, held_out"):
        ScenesDataset(split="test")


def digest(data, n):
    examples = [data[i] for i in range(n)]
    parts = [(e["image"].numpy().tobytes(), "\n".join(e["caption"]), e["id"]) for e in examples]
    return hashlib.sha256(b"".join(p + c.encode() + i.encode() for p, c, i in parts)).hexdigest()


def test_the_default_scenes_never_change():
    """Measured results name them; a change here makes every published number another one's."""
    assert digest(ScenesDataset(), 64) == (
        "c6aa171240e2406cc7e1dd1456f65202610e6137121337f4f9516f4e71b07c21"
    )
    held_out = ScenesDataset(
        split="held_out", categories=("one_object", "two_objects", "counting"), size=32
    )
    assert digest(held_out, 66) == (
        "e45f43e0529284f4906e8a076feefc39b36979cdd24468fe968385ca083b1c51"
    )


def test_short_captions_come_after_the_full_ones_and_change_no_picture():
    full, both = ScenesDataset(), ScenesDataset(short_captions=True)
    for i in range(4):
        scene = full.scene(i)
        assert both[i]["caption"] == captions(scene) + short_captions(scene)
        torch.testing.assert_close(both[i]["image"], full[i]["image"], rtol=0, atol=0)


def test_words_can_be_trained_on():
    data = ScenesDataset(categories=("one_object", "spelling"), short_captions=True)
    assert data[1]["caption"][0].startswith('the word "')
    assert "word" not in data[0]["caption"][0]


@pytest.mark.parametrize("index", [-1, 5])
def test_index_outside(index):
    with pytest.raises(IndexError, match=f"index {index} is not in"):
        ScenesDataset(num_scenes=5)[index]
