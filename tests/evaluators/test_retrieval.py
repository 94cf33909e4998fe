"""Retrieval finds planted pictures, counts duplicates for each other and gives ties away."""

import pytest
import torch

from tinydiffusion.evaluators.retrieval import Retrieval


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
