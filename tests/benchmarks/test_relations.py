"""The benchmark of relations measures text alone, and what it says is known was learned."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from tinydiffusion.datasets.scenes import ScenesDataset
from tinydiffusion.scenes.captions import parse

FOLDER = Path(__file__).parents[2] / "benchmarks"
SMALL = ("--text_encoder.width=32", "--text_encoder.heads=2", "--text_encoder.layers=1",
         "--training.batch_size=32")  # fmt: skip


@pytest.fixture
def relations(monkeypatch):
    """The benchmark's module, as `python benchmarks/relations.py` would have it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("relations")


def test_each_size_and_seed_has_a_curve(relations, monkeypatch, capsys):
    words = ["relations.py", "--pictures=64", "--conv-sizes", "1", "3", "--seeds", "5", *SMALL]
    monkeypatch.setattr(relations, "PAIRS", 8)
    monkeypatch.setattr(sys, "argv", words)
    relations.main()
    rows = json.loads(capsys.readouterr().out)["conv_size"]
    assert rows.keys() == {"1", "3"}
    for row in rows.values():
        assert row["median"] is None
        assert [run["seed"] for run in row["runs"]] == [5]
        assert [at["pictures"] for at in row["runs"][0]["curve"]] == [0, 64]


def test_the_opposite_is_another_picture_of_the_same_things(relations):
    pairs = relations.held_out(ScenesDataset(split="held_out", num_scenes=40), side=8)
    assert pairs.small.shape == (20, 3, 8, 8)
    for told, opposite in zip(pairs.told, pairs.opposite, strict=True):
        first, second = parse(told), parse(opposite)
        assert first is not None
        assert second is not None
        assert second.canonical() != first.canonical()
        assert {*second.objects} == {*first.objects}


def test_known_is_the_first_measurement_above_the_bar(relations):
    curve = [{"pictures": n, "opposite_adds": gain} for n, gain in enumerate((0.0, 0.021, 0.0))]
    assert relations.until_known(curve) == 1
    assert relations.until_known(curve[:1]) is None
    assert relations.middle([3, None, 1]) == 3
    assert relations.middle([None, None, 1]) is None


def test_the_error_falls(relations):
    torch.manual_seed(0)
    config = relations.config_file.load(str(FOLDER.parent / "configs/quickstart.yaml"),
                                        [*SMALL, "--training.warmup_pictures=32"])  # fmt: skip
    curve = relations.learn(config, 960)
    assert curve[-1]["error"] < 0.7 * curve[0]["error"]
