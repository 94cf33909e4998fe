"""The inception score has its closed forms and wants a picture per split."""

import math

import pytest
import torch

from tinydiffusion.evaluators.inception_score import InceptionScore, _score


def one_hot(classes, num_classes=4):
    return 60 * torch.nn.functional.one_hot(torch.tensor(classes), num_classes).double()


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        (one_hot([0, 1, 2, 3]), 4),  # definite, and all classes
        (one_hot([2, 2, 2]), 1),  # definite, but one class
        (torch.zeros(5, 4).double(), 1),  # nothing definite
        (one_hot([0, 0, 0, 1]), math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4))),
    ],
)
def test_closed_forms(logits, expected):
    assert _score(logits) == pytest.approx(expected)


@pytest.fixture
def evaluator(inception_weights, monkeypatch):
    """One that gives every picture the class of its first level."""
    made = InceptionScore(weights=inception_weights, allow_unverified=True, splits=2)
    monkeypatch.setattr(
        made, "columns", lambda batch: {"features": one_hot(batch["image"][:, 0, 0, 0].long())}
    )
    return made


def test_row_has_the_splits_and_flags_the_weights(evaluator, batch):
    images = torch.tensor([0, 1, 2, 3]).repeat(50).byte()[:, None, None, None].expand(-1, 3, 2, 2)
    evaluator.update(batch("generated", images))
    evaluator.update(batch("reference", images))
    (row,) = evaluator.compute()
    assert (row.name, row.n, row.higher_is_better) == ("inception_score", 200, True)
    assert row.value == pytest.approx(4, rel=0.02)
    assert row.ci95[0] <= row.value <= row.ci95[1]
    assert any("not verified" in warning for warning in row.warnings)
    assert evaluator.provenance()["layer"] == "logits"


def test_fewer_pictures_than_splits_are_a_clear_error(evaluator, batch):
    evaluator.update(batch("generated", torch.zeros(1, 3, 2, 2).byte()))
    with pytest.raises(ValueError, match="needs a picture per split, 2, got 1"):
        evaluator.compute()
    with pytest.raises(ValueError, match="splits must be at least 1, got 0"):
        InceptionScore(splits=0)
