"""Every evaluator that needs no weights: merging, order, duplicates, JSON; and other people's."""

import inspect
import json
import math

import numpy as np
import pytest
import torch

from tinydiffusion import registry
from tinydiffusion.protocols import Score
from tinydiffusion.scenes.captions import caption
from tinydiffusion.scenes.render import render
from tinydiffusion.scenes.sampling import combinations, place

N = 24


def needs_weights(name):
    return {"weights", "model"} & set(
        inspect.signature(registry.load("evaluator", name)).parameters
    )


NAMES = [name for name in registry.names("evaluator") if not needs_weights(name)]


@pytest.fixture(scope="module")
def scenes():
    """Pictures of different scenes; the generated ones are drawn anew from the same captions."""
    rng = np.random.default_rng(0)
    every = combinations("one_object", "train") + combinations("two_objects", "train")
    asked = [every[i] for i in rng.choice(len(every), N, replace=False)]
    sources = {
        source: torch.stack([render(place(description, rng)) for description in asked])
        for source in ("generated", "reference", "train")
    }
    return sources, [caption(description) for description in asked]


def feed(name, scenes, batch, order, sizes):
    """The evaluator after its sources in this order and in batches of these sizes."""
    sources, prompts = scenes
    evaluator = registry.create("evaluator", name)
    for source, images in sources.items():
        if source in evaluator.needs:
            for ids in order.split(sizes):
                texts = [prompts[i] for i in ids]
                evaluator.update(batch(source, images[ids], prompts=texts, ids=ids))
    return evaluator


def assert_equal(scores, expected):
    assert [s.name for s in scores] == [s.name for s in expected]
    for score, other in zip(scores, expected, strict=True):
        assert score.value == pytest.approx(other.value, rel=1e-6, abs=1e-9), score.name
        assert score.n == other.n


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_finite_and_can_be_written_as_json(name, scenes, batch):
    evaluator = feed(name, scenes, batch, torch.arange(N), [N])
    scores = evaluator.compute()
    assert scores[0].name.startswith(name)
    for score in scores:
        assert isinstance(score, Score)
        assert math.isfinite(score.value)
        if score.ci95 is not None:
            assert score.ci95[0] <= score.value <= score.ci95[1]
        json.dumps(score._asdict(), allow_nan=False)
    record = evaluator.provenance()
    assert {"extractor", "weights_sha256", "verified", "resize", "packages"} <= set(record)
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize("name", NAMES)
def test_neither_order_nor_batches_matter(name, scenes, batch):
    whole = feed(name, scenes, batch, torch.arange(N), [N])
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    shuffled = feed(name, scenes, batch, order, [1, 10, 13])
    assert_equal(shuffled.compute(), whole.compute())


@pytest.mark.parametrize("name", NAMES)
def test_merged_parts_equal_the_whole(name, scenes, batch, merge):
    whole = feed(name, scenes, batch, torch.arange(N), [N])
    parts = [feed(name, scenes, batch, torch.arange(N)[rank::3], [3, 5]) for rank in range(3)]
    merged = registry.create("evaluator", name)
    merged.load_state(merge(*(part.state() for part in parts)))
    assert_equal(merged.compute(), whole.compute())
    assert_equal(
        parts[0].compute(), feed(name, scenes, batch, torch.arange(0, N, 3), [8]).compute()
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_given_twice_is_an_error(name, scenes, batch, merge):
    one, other = (feed(name, scenes, batch, torch.arange(N), [N]) for _ in range(2))
    with pytest.raises(ValueError, match="given twice"):
        registry.create("evaluator", name).load_state(merge(one.state(), other.state()))
    sources, prompts = scenes
    with pytest.raises(ValueError, match="generated picture 3 was given twice"):
        one.update(batch("generated", sources["generated"][3:5], prompts=prompts[3:5], first_id=3))


THIRD_PARTY = """
class Brightness:
    needs = ("generated",)

    def __init__(self, *, scale=1.0):
        self.scale = scale
"""


def test_a_third_partys_evaluator_is_found_by_entry_point(tmp_path, monkeypatch):
    (tmp_path / "brightness_metric.py").write_text(THIRD_PARTY)
    info = tmp_path / "brightness_metric-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brightness-metric\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[tinydiffusion.evaluators]\nbrightness = brightness_metric:Brightness\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "brightness" in registry.names("evaluator")
    assert registry.load("evaluator", "brightness").__name__ == "Brightness"
    assert registry.create("evaluator", "brightness", scale=2.0).scale == 2.0
    with pytest.raises(registry.PluginError, match="did you mean 'scale'"):
        registry.create("evaluator", "brightness", scales=2.0)


def test_an_unknown_evaluator_is_answered_with_the_nearest_name():
    with pytest.raises(registry.PluginError, match="did you mean 'pixel_fd'"):
        registry.load("evaluator", "pixel_df")
