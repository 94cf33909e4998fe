"""Planted copies are reported by their share, mirrored and moved ones too; blur is no copy."""

import itertools
import json

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate, pad

from tinydiffusion.abilities import Illustrated
from tinydiffusion.evaluators.copy_rate import CopyRate
from tinydiffusion.metrics.copies import nearest
from tinydiffusion.scenes.render import render
from tinydiffusion.scenes.sampling import sample_scene

N = 400


def smooth(n, seed, side=32):
    """Random smooth pictures."""
    coarse = torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    pictures = 0.25 * interpolate(coarse, side, mode="bicubic") + 0.5
    return (pictures.clamp(0, 1) * 255).round().byte()


def moved(images, x, y):
    """Pictures moved by up to a pixel, their border repeated."""
    side = images.shape[-1]
    return pad(images, (1, 1, 1, 1), mode="replicate")[..., 1 + y :, 1 + x :][..., :side, :side]


def scenes(n, seed):
    rng = np.random.default_rng(seed)
    categories = itertools.islice(itertools.cycle(("one_object", "two_objects", "counting")), n)
    return torch.stack([render(sample_scene(rng, each, "train")) for each in categories])


@pytest.fixture(scope="module")
def sets():
    return {"train": smooth(N, 1), "reference": smooth(N, 2), "generated": smooth(N, 3)}


@pytest.fixture
def measured(batch):
    def measured(sets, **options):
        evaluator = CopyRate(**options)
        for source, images in sets.items():
            for first in range(0, len(images), 150):
                part = images[first : first + 150]
                evaluator.update(batch(source, part, first_id=first))
        return evaluator

    return measured


def copies(images):
    """Four kinds in turn: equal, mirrored, mirrored and moved, with noise."""
    result = images.clone()
    result[1::4] = images[1::4].flip(-1)
    result[2::4] = moved(images[2::4].flip(-1), 1, -1)
    noise = torch.randn(images[3::4].shape, generator=torch.Generator().manual_seed(4))
    result[3::4] = (images[3::4] + 8 * noise).clamp(0, 255).byte()
    return result


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_planted_copies_are_reported_within_three_points(measured, sets, share):
    generated, count = sets["generated"].clone(), round(share * N)
    generated[:count] = copies(sets["train"][:count])
    (row,) = measured(sets | {"generated": generated}).compute()
    assert row.value == pytest.approx(share, abs=0.03)
    assert all(row.per_picture[i] == 1 for i in range(count))
    assert row.details["n_mirrored"] == pytest.approx(count / 2, abs=0.03 * N)


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_mirrored_copies_of_drawn_scenes_are_reported(measured, share):
    """Scenes come near each other by chance, so that the threshold is low."""
    drawn = {source: scenes(N, seed) for seed, source in enumerate(CopyRate.needs)}
    count = round(share * N)
    drawn["generated"][:count] = drawn["train"][:count].flip(-1)
    assert measured(drawn).compute()[0].value == pytest.approx(share, abs=0.03)


def test_held_out_pictures_are_copies_in_one_case_of_a_hundred(measured, sets):
    (row,) = measured(sets | {"generated": sets["reference"]}).compute()
    assert row.value == pytest.approx(0.01)
    assert (row.n, row.details["n_reference"], row.details["n_train"]) == (N, N, N)
    assert row.ci95[0] < row.value < row.ci95[1]
    assert not row.higher_is_better
    assert row.warnings == []


def test_a_model_that_draws_blur_or_the_mean_copies_nothing(measured, sets):
    """By Euclidean distance both are nearer to the training set than any real picture."""
    blurred = avg_pool2d(sets["reference"].float(), 5, 1, 2, count_include_pad=False).byte()
    assert measured(sets | {"generated": blurred}).compute()[0].value < 0.04
    noise = torch.randn(N, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    mean = (sets["train"].float().mean(dim=0) + 8 * noise).clamp(0, 255).byte()
    assert measured(sets | {"generated": mean}).compute()[0].value == 0


def test_the_closest_pairs_are_named_and_shown(measured, sets):
    generated = sets["generated"][:40].clone()
    generated[7], generated[30] = sets["train"][100], sets["train"][200].flip(-1)
    evaluator = measured(sets | {"generated": generated})
    (row,) = evaluator.compute()
    pairs = row.details["closest_pairs"]
    assert len(pairs) == 16
    assert [p["distance"] for p in pairs] == sorted(p["distance"] for p in pairs)
    found = {(p["generated"], p["train"], p["mirrored"]) for p in pairs[:2]}
    assert found == {(7, 100, False), (30, 200, True)}
    json.dumps(row._asdict(), allow_nan=False)

    assert isinstance(evaluator, Illustrated)
    figure = evaluator.figures()["copy_rate"]
    assert (figure.dtype, figure.shape) == (torch.uint8, (3, 4 * 38, 4 * 71))
    for first in (3, 74):  # the copies are first: both halves of their pairs are the same
        drawn, gap, copied = figure[:, 3:35, first : first + 65].split([32, 1, 32], dim=2)
        torch.testing.assert_close(drawn, copied)
        assert (gap == 255).all()


def test_few_pictures_make_a_smaller_figure(measured, sets):
    few = {source: images[:5] for source, images in sets.items()}
    evaluator = measured(few)
    assert evaluator.figures()["copy_rate"].shape == (3, 2 * 38, 4 * 71)
    assert "5 held-out pictures" in evaluator.compute()[0].warnings[0]


def test_a_held_out_set_that_shares_training_pictures_is_named(measured, sets):
    shared = sets["reference"].clone()
    shared[:40] = sets["train"][:40]
    generated = torch.cat([sets["train"][:5], sets["generated"][5:20]])
    (row,) = measured(sets | {"reference": shared, "generated": generated}).compute()
    assert "10% of the held-out pictures are training pictures" in row.warnings[0]
    assert row.value == pytest.approx(0.25)  # identical pictures still count


def test_a_larger_held_out_set_is_thinned_evenly(measured, sets, monkeypatch):
    monkeypatch.setattr("tinydiffusion.evaluators.copy_rate.MAX_HELD_OUT", 134)
    (thinned,) = measured(sets).compute()
    (third,) = measured(sets | {"reference": sets["reference"][::3]}).compute()
    assert thinned.details["n_reference"] == 134
    assert thinned.details["threshold"] == third.details["threshold"]


def test_other_sizes_are_averaged(measured, sets):
    """512 pixels of one picture are the copy of its 32 pixels."""
    large = sets["train"][:20].repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    assert measured(sets | {"generated": large}).compute()[0].value == 1
    assert measured(sets | {"generated": large}, size=16).compute()[0].value == 1


def test_the_search_equals_a_loop(sets, monkeypatch):
    """Pieces of the training set give what one piece gives."""
    pictures, train = sets["generated"][:20], sets["train"][:90]
    whole = nearest(pictures, train)
    monkeypatch.setattr("tinydiffusion.metrics.copies.CHUNK", 32)
    monkeypatch.setattr("tinydiffusion.metrics.copies.QUERIES", 7)
    pieces = nearest(pictures, train)
    torch.testing.assert_close(pieces.distance, whole.distance)
    assert pieces.place.tolist() == whole.place.tolist()
    assert pieces.mirrored.tolist() == whole.mirrored.tolist()
    rows, others = (avg_pool2d(x.float() / 255, 2).flatten(1) for x in (pictures, train))
    cosine = torch.cosine_similarity(
        (rows - others.mean(dim=0))[:, None], (others - others.mean(dim=0))[None], dim=2
    )
    assert (whole.distance <= 1 - cosine.max(dim=1).values + 1e-6).all()


def test_the_state_after_a_merge_is_searched_anew(measured, sets, merge):
    part = {source: images[:50] for source, images in sets.items()}
    evaluator = measured(part)
    before = evaluator.compute()[0].value
    copies = measured(part | {"generated": part["train"]})
    evaluator.load_state(copies.state())
    assert (before, evaluator.compute()[0].value) == (pytest.approx(0, abs=0.05), 1)


def test_an_evaluator_without_pictures_merges_with_one_that_has_some(measured, sets, merge):
    some = measured({source: images[:50] for source, images in sets.items()})
    merged = CopyRate()
    merged.load_state(merge(CopyRate().state(), some.state()))
    assert merged.compute()[0].value == some.compute()[0].value


def test_bad_input_is_one_clear_line(measured, sets, batch):
    with pytest.raises(ValueError, match=r"size must be even and in \[8, 128\], got 9"):
        CopyRate(size=9)
    with pytest.raises(ValueError, match=r"uint8 RGB .* got torch.uint8 of shape \(9, 4, 32, 32\)"):
        measured({"generated": torch.zeros(9, 4, 32, 32, dtype=torch.uint8)})
    with pytest.raises(ValueError, match="copy_rate got no train picture; it needs generated,"):
        measured({"generated": sets["generated"], "reference": sets["reference"]}).compute()
    with pytest.raises(ValueError, match="different training pictures, got 1 equal ones"):
        measured(sets | {"train": sets["train"][:1]}).compute()
