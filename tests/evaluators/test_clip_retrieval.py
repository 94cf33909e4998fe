"""CLIP retrieval and the shuffle gap equal a loop over all pairs; a model without text has none."""

import pytest
import torch
from torch.nn.functional import normalize

from tinydiffusion.evaluators import clip_retrieval
from tinydiffusion.evaluators.clip_retrieval import CLIPRetrieval, compare
from tinydiffusion.metrics.clip import shared_clip

PROMPTS = ["a red circle", "a blue square", "a dog", "five cats", "A  Dog", "the sea", "a tree"]


def measured(model, batch, images, prompts):
    evaluator = CLIPRetrieval(model=model)
    evaluator.update(batch("generated", images, prompts=prompts))
    return evaluator


def unit(n, dimensions=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(n, dimensions, dtype=torch.float64, generator=generator), dim=1)


def gap(pictures, texts, own):
    """Mean own cosine minus the mean over pairs of a picture and another picture's other prompt."""
    cosine, n = pictures @ texts.T, len(own)
    foreign = [cosine[i, own[j]] for i in range(n) for j in range(n) if own[j] != own[i]]
    return (cosine[range(n), own].mean() - torch.stack(foreign).mean()).item()


def test_equals_a_loop_over_all_pairs(clip_model, batch, pictures):
    """ "A  Dog" and "a dog" are the same tokens, so there are six prompts."""
    images = pictures(7, 32)
    rows = {r.name: r for r in measured(clip_model, batch, images, PROMPTS).compute()}
    clip = shared_clip(clip_model, None)
    distinct = [p for p in PROMPTS if p != "A  Dog"]
    x = clip.encode_images(images).double()
    texts = clip.encode_texts(distinct).features.double()
    own = [distinct.index(p.replace("A  Dog", "a dog")) for p in PROMPTS]
    cosine = x @ texts.T
    ranks = [int((cosine[i] > cosine[i, own[i]]).sum()) for i in range(7)]
    name = "clip_retrieval[local-dir:tiny]"
    for k in (1, 5):
        row = rows[f"{name}@{k}"]
        assert row.value == pytest.approx(sum(rank < k for rank in ranks) / 7)
        assert row.details["chance"] == pytest.approx(k / 6)
        assert row.details["n_candidates"] == 6
        assert row.details["above_chance"] == (row.ci95[0] > row.details["chance"])
        assert row.per_picture == {i: float(rank < k) for i, rank in enumerate(ranks)}
    row = rows[f"{name}/shuffle_gap"]
    assert row.value == pytest.approx(100 * gap(x, texts, own), abs=1e-4)
    assert row.value == pytest.approx(row.details["own"] - row.details["shuffled"])
    assert row.value == pytest.approx(sum(row.per_picture.values()) / 7)


def test_own_prompts_are_found_and_make_a_gap(clip_model, batch, pictures, monkeypatch):
    """Pictures that lie where their prompts lie."""
    evaluator = measured(clip_model, batch, pictures(7, 32), PROMPTS)
    state = evaluator.state()
    state["generated/picture"] = state["generated/text"]
    evaluator.load_state(state)
    first, fifth, shuffle_gap = evaluator.compute()
    assert first.value == fifth.value == 1
    assert 0 < shuffle_gap.ci95[0] < shuffle_gap.value < shuffle_gap.ci95[1]


def test_one_picture_for_all_prompts_has_no_gap_and_one_hit(clip_model, batch, pictures):
    images = pictures(1, 32).repeat(6, 1, 1, 1)
    rows = measured(clip_model, batch, images, [p for p in PROMPTS if p != "A  Dog"]).compute()
    assert rows[0].value == pytest.approx(1 / 6)
    assert rows[2].value == pytest.approx(0, abs=1e-4)
    assert rows[2].ci95[0] <= rows[2].value <= rows[2].ci95[1]


def test_pieces_equal_the_whole(monkeypatch):
    own = torch.tensor([0, 1, 1, 2, 3, 4, 0, 2])
    arguments = unit(8), unit(5, seed=1), own, own.bincount()
    whole = compare(*arguments)
    monkeypatch.setattr(clip_retrieval, "CHUNK", 3)
    for part, expected in zip(compare(*arguments), whole, strict=True):
        torch.testing.assert_close(part, expected)


def test_gap_and_interval_equal_the_jackknife_by_hand():
    """With prompts that several pictures share."""
    own = torch.tensor([0, 1, 1, 2, 3, 4, 0, 2])
    pictures, texts = unit(8), unit(5, seed=1)
    found = compare(pictures, texts, own, own.bincount())
    row = clip_retrieval._shuffle_gap("gap", list(range(8)), found)
    assert row.value == pytest.approx(100 * gap(pictures, texts, own.tolist()))
    without = []
    for i in range(8):
        kept = [j for j in range(8) if j != i]
        without.append(100 * gap(pictures[kept], texts, own[kept].tolist()))
    values = torch.tensor(without, dtype=torch.float64)
    half = 1.959963984540054 * (7 / 8 * (values - values.mean()).square().sum().item()) ** 0.5
    assert row.ci95 == pytest.approx((row.value - half, row.value + half))


def test_ties_with_foreign_prompts_are_no_hits():
    texts = torch.eye(2, dtype=torch.float64)
    pictures = normalize(torch.ones(2, 2, dtype=torch.float64), dim=1)
    found = compare(pictures, texts, torch.tensor([0, 1]), torch.tensor([1, 1]))
    assert found.found.within(1).hits(torch.tensor([0, 1])).tolist() == [False, False]
    assert found.found.within(2).hits(torch.tensor([0, 1])).tolist() == [True, True]


@pytest.mark.parametrize("chunk", [3, 512])
def test_found_prompts_equal_a_loop_over_all_pairs(chunk, monkeypatch):
    """Eight prompts, of which two are one vector and so always tied."""
    monkeypatch.setattr(clip_retrieval, "CHUNK", chunk)
    pictures, texts = unit(10), unit(8, seed=1)
    texts[3] = texts[2]
    own = torch.arange(10) % 8
    found = compare(pictures, texts, own, own.bincount()).found
    cosine = (pictures @ texts.T).tolist()
    expected = {
        (i, j, sum(other >= c for other in row) - 1)
        for i, row in enumerate(cosine)
        for j, c in enumerate(row)
    }
    triples = set(zip(*(column.tolist() for column in found), strict=True))
    assert triples == {triple for triple in expected if triple[2] < 5}


def test_a_clip_that_sees_one_prompt_everywhere_is_not_above_chance(clip_model, batch, pictures):
    """Nine of ten pictures have the prompt that all pictures are nearest to."""
    evaluator = measured(clip_model, batch, pictures(20, 32), ["a dog"] * 18 + PROMPTS[:2])
    state = evaluator.state()
    text, _ = state["generated/text"]
    state["generated/picture"] = (text[:1].repeat(20, 1), "cat")
    evaluator.load_state(state)
    row = evaluator.compute()[0]
    assert row.value == 0.9
    assert row.details["chance"] == pytest.approx(1 / 3)
    assert not row.details["above_chance"]
    assert row.ci95[0] == row.details["chance"]
    assert any("not above chance" in warning for warning in row.warnings)


def test_parts_merge_to_the_whole_in_any_order(clip_model, batch, merge, pictures):
    images = pictures(7, 32)
    whole = measured(clip_model, batch, images, PROMPTS)
    a, b, merged = (CLIPRetrieval(model=clip_model) for _ in range(3))
    a.update(batch("generated", images[4:], prompts=PROMPTS[4:], first_id=4))
    b.update(batch("generated", images[:4], prompts=PROMPTS[:4]))
    merged.load_state(merge(a.state(), b.state()))
    for row, expected in zip(merged.compute(), whole.compute(), strict=True):
        assert row.value == pytest.approx(expected.value, abs=1e-4)
        assert row.ci95 == pytest.approx(expected.ci95, abs=1e-4)


def test_too_little_is_an_error(clip_model, batch, pictures):
    with pytest.raises(ValueError, match="no generated picture"):
        CLIPRetrieval(model=clip_model).compute()
    with pytest.raises(ValueError, match="at least 2 different prompts, got 1 of 3 pictures"):
        measured(clip_model, batch, pictures(3), ["a dog", "A dog", " a dog "]).compute()
    rows = measured(clip_model, batch, pictures(2), ["a dog", "a cat"]).compute()
    assert rows[2].ci95 is None
