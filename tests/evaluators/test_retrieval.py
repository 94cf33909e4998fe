"""Retrieval finds planted pictures, gives ties away, and knows chance where captions repeat."""

import pytest
import torch

from tinydiffusion.evaluators.retrieval import Retrieval, find, make_gallery
from tinydiffusion.metrics.recall import MAX_RANK


def scores(generated, prompts, reference, captions, batch):
    evaluator = Retrieval()
    evaluator.update(batch("generated", generated, prompts=prompts))
    evaluator.update(batch("reference", reference, prompts=captions))
    return {row.name: row for row in evaluator.compute()}


def names(n):
    return [f"picture {i}" for i in range(n)]


def test_the_set_itself_is_always_found(batch, pictures):
    images = pictures(12)
    rows = scores(images, names(12), images, names(12), batch)
    assert rows["retrieval@1"].value == 1
    assert rows["retrieval@1"].details["chance"] == pytest.approx(1 / 12)
    assert rows["retrieval@5"].details["chance"] == pytest.approx(5 / 12)
    low, high = rows["retrieval@1"].ci95
    assert 0.7 < low < high == 1


def test_planted_swaps_are_misses_of_the_first_rank(batch, pictures):
    images = pictures(10)
    prompts = names(10)
    prompts[:4] = ["picture 1", "picture 0", "picture 3", "picture 2"]
    rows = scores(images, prompts, images, names(10), batch)
    assert rows["retrieval@1"].value == pytest.approx(0.6)


def test_second_nearest_is_a_hit_within_five_only(batch):
    def levels(*values):
        return torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 16, 16)

    rows = scores(levels(100), ["b"], levels(101, 104, 200), ["a", "b", "c"], batch)
    assert (rows["retrieval@1"].value, rows["retrieval@5"].value) == (0, 1)


def test_exact_duplicates_count_for_each_other(batch, pictures):
    images = pictures(6)
    images[1] = images[0]
    assert scores(images, names(6), images, names(6), batch)["retrieval@1"].value == 1


def test_ties_with_other_pictures_are_no_hits(batch):
    """One grey picture, equally far from black and white, answers neither prompt."""
    ends = torch.tensor([0, 200], dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 16, 16)
    grey = torch.full((2, 3, 16, 16), 100, dtype=torch.uint8)
    assert (
        scores(grey, ["black", "white"], ends, ["black", "white"], batch)["retrieval@1"].value == 0
    )


def test_any_picture_with_the_caption_is_a_hit(batch, pictures):
    images = pictures(4)
    captions = ["same", "same", "other", "third"]
    rows = scores(images[1:2], ["same"], images, captions, batch)
    assert rows["retrieval@1"].value == 1


def test_a_prompt_without_its_picture_is_named(batch, pictures):
    with pytest.raises(ValueError, match="no reference picture has the caption 'a lost dog'"):
        scores(pictures(1), ["a lost dog"], pictures(3), names(3), batch)


def test_an_empty_side_is_an_error(batch, pictures):
    evaluator = Retrieval()
    evaluator.update(batch("generated", pictures(2), prompts=names(2)))
    with pytest.raises(ValueError, match="got 2 and 0"):
        evaluator.compute()


def ahead_by_loop(picture, references, captions, prompt):
    """Foreign references at least as near as the nearest own one, by the definition."""
    looks = {tuple(r.tolist()) for r, c in zip(references, captions, strict=True) if c == prompt}
    distances = [
        (float((r - picture).square().sum()), tuple(r.tolist()) in looks) for r in references
    ]
    nearest = min(distance for distance, own in distances if own)
    return sum(distance <= nearest for distance, own in distances if not own)


@pytest.mark.parametrize("seed", range(5))
def test_finds_what_the_definition_finds(seed):
    """Of few looks, so that many distances are tied and many references are the same picture."""
    generator = torch.Generator().manual_seed(seed)
    references = torch.randint(0, 3, (20, 2), generator=generator).float()
    captions = [f"caption {i}" for i in torch.randint(0, 8, (20,), generator=generator).tolist()]
    pictures = torch.randint(0, 3, (12, 2), generator=generator).double()
    number = {caption: i for i, caption in enumerate(sorted(set(captions))[:6])}
    found = find(pictures, make_gallery(references, captions, number))
    expected = {
        (place, i, ahead_by_loop(picture, references.double(), captions, prompt))
        for place, picture in enumerate(pictures)
        for prompt, i in number.items()
    }
    triples = set(zip(*(column.tolist() for column in found), strict=True))
    assert triples == {triple for triple in expected if triple[2] < MAX_RANK}


def in_turn(*captions):
    return lambda n: [captions[i % len(captions)] for i in range(n)]


UNEVEN = ("often",) * 9 + ("rarely",)
TEN = [f"class {i}" for i in range(10)]
CAPTIONS = {
    "one": (in_turn("a picture"), in_turn("a picture")),
    "two": (in_turn("a cat", "a dog"), in_turn("a cat", "a dog")),
    "ten": (in_turn(*TEN), in_turn(*TEN)),
    "all different": (names, names),
    "uneven": (in_turn(*UNEVEN), in_turn(*UNEVEN)),
    "ten, of which one is asked mostly": (in_turn(*TEN[:1] * 9, *TEN[1:5]), in_turn(*TEN)),
}


@pytest.mark.parametrize("kind", CAPTIONS)
def test_noise_against_noise_is_at_chance(kind, batch, pictures):
    """Six sets with two rows each: of 12 ranges of 95 %, at most two miss the value."""
    prompts, captions = (of(n) for of, n in zip(CAPTIONS[kind], (50, 100), strict=True))
    rows = [
        row
        for seed in range(6)
        for row in scores(
            pictures(50, seed=2 * seed), prompts, pictures(100, seed=2 * seed + 1), captions, batch
        ).values()
    ]
    ranges = [row.details["chance_interval"] for row in rows]
    within = [low <= row.value <= high for row, (low, high) in zip(rows, ranges, strict=True)]
    assert sum(within) >= 10
    assert sum(row.ci95[0] > row.details["chance"] for row in rows) <= 1


@pytest.mark.parametrize("kind", ["two", "ten", "all different"])
def test_pictures_near_their_own_are_above_chance(kind, batch, pictures):
    images, captions = pictures(60), CAPTIONS[kind][1](60)
    noise = torch.randint(0, 9, images.shape, generator=torch.Generator().manual_seed(1))
    noisy = (images.int() + noise - 4).clamp(0, 255).to(torch.uint8)
    row = scores(noisy, captions, images, captions, batch)["retrieval@1"]
    assert row.value == 1
    assert row.details["chance_interval"][1] < row.ci95[0]
    assert row.details["above_chance"]
    assert not row.warnings


def test_one_caption_says_nothing(batch, pictures):
    images = pictures(12)
    for row in scores(images, ["same"] * 12, images, ["same"] * 12, batch).values():
        assert (row.value, row.details["chance"]) == (1, 1)
        assert not row.details["above_chance"]
        assert "says nothing" in row.warnings[0]


def test_chance_counts_the_pictures_that_share_a_caption_or_a_look(batch, pictures):
    """Two of "same", and one of "other" that is the picture of "third" again."""
    images = pictures(5)
    images[3] = images[2]
    captions = ["same", "same", "other", "third", "fifth"]
    rows = scores(images, captions, images, captions, batch)
    assert rows["retrieval@1"].details["chance"] == pytest.approx((2 + 2 + 2 + 2 + 1) / 25)


def test_pictures_of_one_prompt_cannot_be_above_chance(batch, pictures):
    """All are right; so would they be if no text had been read."""
    images = pictures(20)
    rows = scores(images[:10], ["a"] * 10, images, ["a"] * 10 + ["b"] * 10, batch)
    row = rows["retrieval@1"]
    assert (row.value, row.details["chance"]) == (1, 0.5)
    assert not row.details["above_chance"]
    assert "not above chance, 0.5: with shuffled prompts" in row.warnings[0]


def test_copies_of_a_reference_are_one_chance_each(batch, pictures):
    """Twenty pictures a hundred times: five ranks hold one of twenty, not five of two thousand."""
    references, generated = pictures(20), pictures(100)
    captions = [f"class {i % 20}" for i in range(2000)]
    found = scores(generated, captions[:100], references.repeat(100, 1, 1, 1), captions, batch)[
        "retrieval@5"
    ]
    low, high = found.details["chance_interval"]
    assert 0 <= low <= found.details["chance"] <= high < 0.2
