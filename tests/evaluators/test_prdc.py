"""Precision, recall, density and coverage have their closed forms, on drawn and on copied sets."""

import json

import pytest
import torch

from tinydiffusion.evaluators.prdc import PRDC

NAMES = ["precision", "recall", "density", "coverage"]


def dots(*levels):
    """One-pixel pictures of these grey levels: distances between them are those of the levels."""
    return torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 1, 1)


def feed(evaluator, batch, generated, reference):
    for source, images in (("generated", generated), ("reference", reference)):
        evaluator.update(batch(source, images))
    return evaluator


def scores(batch, generated, reference, k=1):
    evaluator = PRDC(extractor={"name": "pixels", "size": 1}, nearest_k=k)
    rows = feed(evaluator, batch, generated, reference).compute()
    assert [row.name for row in rows] == [f"{name}[pixels]" for name in NAMES]
    return dict(zip(NAMES, rows, strict=True))


def test_by_hand(batch):
    """Reference balls: 0 and 10 reach 10 far, 100 and 120 reach 20; generated: 5, 7 reach 2."""
    rows = scores(batch, dots(5, 7, 125), dots(0, 10, 100, 120))
    assert {name: row.value for name, row in rows.items()} == pytest.approx(
        {
            "precision": 1.0,  # 5 and 7 lie near 0 and 10; 125 near 120
            "recall": 3 / 4,  # the ball of 125 reaches 118 far, down to 7: 10, 100 and 120
            "density": (2 + 2 + 1) / 3,
            "coverage": 3 / 4,  # nothing lies in the ball of 100
        }
    )
    assert rows["precision"].per_picture == {0: 1.0, 1: 1.0, 2: 1.0}
    assert rows["density"].per_picture == {0: 2.0, 1: 2.0, 2: 1.0}
    assert rows["recall"].per_picture == {}
    assert rows["density"].details == {"nearest_k": 1, "n_reference": 4}


@pytest.mark.parametrize("k", [1, 3])
def test_copies_of_the_reference_are_precise_and_cover_it(batch, k):
    levels = torch.arange(0, 200, 5).tolist()
    rows = scores(batch, dots(*levels), dots(*levels), k)
    assert [rows[name].value for name in ("precision", "recall", "coverage")] == [1, 1, 1]
    assert rows["density"].value >= 1


def test_duplicates_in_the_reference_count_as_found(batch):
    """Their balls have radius 0: a ball has its border."""
    rows = scores(batch, dots(9, 9, 9), dots(9, 9, 9, 9))
    assert [rows[name].value for name in NAMES] == [1, 1, 4, 1]


def test_a_collapsed_model_is_precise_without_recall(batch):
    reference = torch.arange(0, 250, 10).tolist()
    rows = scores(batch, dots(*[100] * 25), dots(*reference))
    assert rows["precision"].value == 1
    assert rows["recall"].value == 1 / 25
    assert rows["coverage"].value == 3 / 25
    low, high = rows["precision"].ci95
    assert low < 1 == high


def test_neither_order_nor_parts_matter(batch, merge, pictures):
    extractor = {"name": "pixels", "size": 2}
    sets = pictures(20, 2), pictures(25, 2, 1)
    whole = feed(PRDC(extractor=extractor), batch, *sets).compute()
    parts = [PRDC(extractor=extractor) for _ in range(3)]
    for source, images in zip(("generated", "reference"), sets, strict=True):
        for rank, part in enumerate(parts):
            ids = torch.arange(len(images))[rank::3].flip(0)
            part.update(batch(source, images[ids], ids=ids))
    merged = PRDC(extractor=extractor)
    merged.load_state(merge(*(part.state() for part in parts)))
    assert merged.compute() == whole
    json.dumps([row._asdict() for row in whole], allow_nan=False)
    assert merged.provenance()["nearest_k"] == 3


def test_too_few_pictures_are_a_clear_error(batch):
    with pytest.raises(
        ValueError, match="nearest_k=3 needs at least 4 pictures per set, got 9 and 3"
    ):
        scores(batch, dots(*range(9)), dots(1, 2, 3), k=3)
    with pytest.raises(ValueError, match="there is no generated picture"):
        scores(batch, dots(*range(9))[:0], dots(1, 2, 3))
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        PRDC(nearest_k=0)
