"""Proves that a mixture visits its sets by their weights and is a function of the place alone."""

from collections import Counter

import pytest
import torch
from picture_toys import noise

from tinydiffusion import abilities, protocols, registry
from tinydiffusion.config import from_dict
from tinydiffusion.datasets.mixture import MixtureDataset
from tinydiffusion.survey import survey


def folder(root, name, count, side=24):
    path = root / name
    path.mkdir()
    for number in range(count):
        noise(side, seed=100 * len(name) + number).save(path / f"{number}.png")
        (path / f"{number}.txt").write_text(f"{name} {number}")
    return {"name": "folder", "path": str(path)}


@pytest.fixture
def two(tmp_path):
    return [folder(tmp_path, "a", 4), folder(tmp_path, "bb", 2)]


def shares(dataset):
    return Counter(dataset[i]["id"].partition("/")[0] for i in range(len(dataset)))


def weighted(sets, *weights):
    return [{**part, "weight": weight} for part, weight in zip(sets, weights, strict=True)]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [(None, (4, 2)), ((1, 1), (4, 4)), ((1, 3), (4, 12)), ((2, 0.5), (8, 2)), ((2, 1), (4, 2))],
)
def test_shares_follow_the_weights_and_every_picture_is_visited(two, weights, expected):
    sets = two if weights is None else weighted(two, *weights)
    dataset = MixtureDataset(sets=sets, size=16)
    assert shares(dataset) == {"folder-0": expected[0], "folder-1": expected[1]}
    captions = {dataset[i]["caption"] for i in range(len(dataset))}
    assert captions == {"a 0", "a 1", "a 2", "a 3", "bb 0", "bb 1"} == set(dataset.captions())
    ids = [dataset[i]["id"] for i in range(len(dataset))]
    assert len(set(ids)) == len(ids)


def test_a_repeated_picture_is_drawn_anew_and_a_place_is_always_the_same(two):
    sets = [{**part, "crop": "random", "flip": True} for part in weighted(two, 1, 4)]
    first, second = (MixtureDataset(sets=sets, size=16) for _ in range(2))
    visits = [
        dataset.augment(i, torch.Generator().manual_seed(i))
        for dataset in (first, second)
        for i in range(len(first))
    ]
    half = len(first)
    for ours, theirs in zip(visits[:half], visits[half:], strict=True):
        assert ours["id"] == theirs["id"]
        assert torch.equal(ours["image"], theirs["image"])
    same = [v["image"] for v in visits[:half] if v["caption"] == "bb 0"]
    assert len(same) == 8
    assert len({image.numpy().tobytes() for image in same}) == 2  # mirrored and not


def test_what_it_can_do_it_says(two):
    dataset = MixtureDataset(sets=[*two, {"name": "scenes", "num_scenes": 3}], size=16)
    assert isinstance(dataset, protocols.Dataset)
    for ability in ("Augmented", "Captioned", "Selective", "Fingerprinted"):
        assert isinstance(dataset, getattr(abilities, ability))
    assert not isinstance(dataset, abilities.Streaming)
    captions, fingerprints = survey(dataset)
    assert "bb 1" in captions
    assert {"folder-0/0.png", "folder-1: places", "scenes-2: options"} <= fingerprints.keys()


def test_another_weight_is_another_set_for_a_resumed_run(two):
    prints = [
        MixtureDataset(sets=weighted(two, *w), size=16).fingerprints() for w in ((1, 1), (1, 2))
    ]
    assert prints[0] != prints[1]


def test_what_a_set_left_out_is_told_under_its_name(tmp_path):
    sets = [folder(tmp_path, "a", 3), folder(tmp_path, "bb", 3)]
    (tmp_path / "bb" / "0.png").write_bytes(b"nothing")
    told = MixtureDataset(sets=sets, size=16).describe_skipped()
    assert told.startswith("folder-1: 1 unreadable")


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([], "at least one"),
        ([{"path": "x"}], r"sets\.0\.name must be"),
        ([{"name": "scenes"}, {"name": "foldr"}], r"sets\.1 \(foldr\): .*did you mean 'folder'"),
        ([{"name": "scenes", "sise": 3}], r"sets\.0 \(scenes\): .*'size'"),
        ([{"name": "folder", "path": "/nowhere"}], r"sets\.0 \(folder\): no such folder"),
        ([{"name": "scenes", "weight": 1}, {"name": "scenes"}], r"sets\.1\.weight"),
        ([{"name": "scenes", "weight": 0}], r"sets\.0\.weight must be a number above 0"),
        ([{"name": "scenes"}, {"name": "scenes", "size": 64}], "pictures of one size"),
        (
            [{"name": "scenes", "weight": 1}, {"name": "scenes", "num_scenes": 2, "weight": 1e9}],
            "bring the weights nearer",
        ),
    ],
)
def test_mistakes_are_named_by_their_key(sets, message):
    with pytest.raises(ValueError, match=message):
        MixtureDataset(sets=sets)


def test_a_streaming_set_is_refused(tmp_path, monkeypatch):
    class Stream(abilities.Streaming):
        def __len__(self):
            return 1

        def visit(self, order_seed, place, generator):
            raise AssertionError("a set that is refused is not read")

    monkeypatch.setattr(registry, "create", lambda *_, **__: Stream())
    with pytest.raises(ValueError, match=r"sets\.0 \(shards\): a streaming set"):
        MixtureDataset(sets=[{"name": "shards", "path": "x"}])


def test_a_config_takes_it(two):
    config = from_dict({"dataset": {"name": "mixture", "size": [16, 24], "sets": two}})
    options = {key: value for key, value in config.dataset.items() if key != "name"}
    assert registry.create("dataset", "mixture", **options)[0]["image"].shape == (3, 16, 24)
