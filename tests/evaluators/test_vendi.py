"""The Vendi score equals its closed forms, whichever of the two matrices is smaller."""

import math

import pytest
import torch

from tinydiffusion.evaluators.vendi import Vendi, vendi_score


def normal(n, dimensions, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dimensions, dtype=torch.float64, generator=generator)


def direct(features):
    """Friedman and Dieng (2023), eq. 2, from the n x n matrix."""
    unit = features / features.norm(dim=1, keepdim=True)
    p = torch.linalg.eigvalsh(unit @ unit.T / len(unit))
    p = p[p > 1e-12]
    return math.exp(-(p * p.log()).sum())


@pytest.mark.parametrize(("n", "dimensions"), [(7, 30), (30, 7), (12, 12), (1, 5)])
def test_equals_the_direct_formula(n, dimensions):
    features = normal(n, dimensions)
    assert vendi_score(features) == pytest.approx(direct(features), rel=1e-9)
    assert 1 - 1e-9 <= vendi_score(features) <= n + 1e-9


def test_closed_forms():
    """n orthogonal pictures count n, equal ones 1, two kinds the exponential of their entropy."""
    assert vendi_score(torch.eye(9, dtype=torch.float64)) == pytest.approx(9)
    assert vendi_score(torch.ones(9, 4, dtype=torch.float64)) == pytest.approx(1)
    kinds = torch.eye(2, dtype=torch.float64)[[0] * 3 + [1]]
    expected = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert vendi_score(kinds) == pytest.approx(expected)
    assert vendi_score(5 * kinds) == pytest.approx(expected)  # cosines know no length


def test_black_pictures_are_one_kind_of_their_own():
    features = torch.eye(3, dtype=torch.float64)[[0, 0, 1, 1]]
    features[:2] = 0
    assert vendi_score(features) == pytest.approx(2)


def test_the_reference_is_measured_at_the_same_n(batch, pictures):
    evaluator = Vendi()
    evaluator.update(batch("generated", pictures(4)))
    images = pictures(7, seed=1)
    images[[0, 2, 4, 6]] = images[0].clone()
    evaluator.update(batch("reference", images))
    own, reference = evaluator.compute()
    assert (own.name, own.n, reference.name, reference.n) == (
        "vendi[pixels]",
        4,
        "vendi[pixels]/reference",
        4,
    )
    assert reference.value == pytest.approx(1)
    assert own.value > 1.01
    assert own.warnings == []


def test_a_smaller_reference_is_said(batch, pictures):
    evaluator = Vendi(extractor={"name": "pixels", "size": 2})
    evaluator.update(batch("generated", pictures(20)))
    evaluator.update(batch("reference", pictures(5)))
    own, reference = evaluator.compute()
    assert (own.n, reference.n) == (20, 5)
    assert "20 generated but 5 reference" in own.warnings[0]
    assert evaluator.extractor.dimensions == 12


def test_no_picture_is_an_error(batch, pictures):
    evaluator = Vendi()
    evaluator.update(batch("generated", pictures(2)))
    with pytest.raises(ValueError, match="no reference picture"):
        evaluator.compute()
