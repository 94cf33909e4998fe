"""KID is unbiased, its interval is as wide as chance, and neither order nor parts matter."""

import json

import numpy as np
import pytest
import torch

from tinydiffusion import registry
from tinydiffusion.evaluators.kid import KID, polynomial_kernel

PIXELS = {"name": "pixels", "size": 2}


def feed(evaluator, batch, generated, reference):
    for source, images in (("generated", generated), ("reference", reference)):
        evaluator.update(batch(source, images))
    return evaluator


def score(batch, generated, reference, **options):
    return feed(KID(extractor=PIXELS, **options), batch, generated, reference).compute()[0]


def test_equals_the_double_sum(batch, pictures):
    evaluator = feed(KID(extractor=PIXELS), batch, pictures(7, 2), pictures(9, 2, 1) // 2)
    x, y = (evaluator.features(source).numpy() for source in ("generated", "reference"))
    kernel = lambda a, b: (np.dot(a, b) / 12 + 1) ** 3  # noqa: E731
    within = [
        np.mean([kernel(a[i], a[j]) for i in range(len(a)) for j in range(len(a)) if i != j])
        for a in (x, y)
    ]
    across = np.mean([kernel(a, b) for a in x for b in y])
    (row,) = evaluator.compute()
    assert row.value == pytest.approx(sum(within) - 2 * across, rel=1e-9)
    assert (row.name, row.n, row.details["n_reference"]) == ("kid[pixels]", 7, 9)
    json.dumps(evaluator.provenance(), allow_nan=False)


def test_kernel_is_the_cubic_one():
    torch.testing.assert_close(
        polynomial_kernel(torch.ones(1, 4), 3 * torch.ones(1, 4)), torch.tensor([[64.0]])
    )


def test_is_unbiased_and_its_interval_covers_the_truth(batch, pictures):
    """Two samples of one distribution: the mean is 0 and the sign is chance."""
    rows = [score(batch, pictures(30, 2, s), pictures(40, 2, 100 + s)) for s in range(40)]
    values = torch.tensor([row.value for row in rows])
    assert 10 <= int((values < 0).sum()) <= 30
    assert values.mean().abs() < 3 * values.std() / 40**0.5
    assert sum(row.ci95[0] <= 0 <= row.ci95[1] for row in rows) >= 34


def test_neither_order_nor_parts_matter(batch, merge, pictures):
    sets = pictures(20, 2), pictures(25, 2, 1) // 2
    whole = feed(KID(extractor=PIXELS), batch, *sets).compute()[0]
    parts = [KID(extractor=PIXELS) for _ in range(3)]
    for source, images in zip(("generated", "reference"), sets, strict=True):
        for rank, part in enumerate(parts):
            ids = torch.arange(len(images))[rank::3].flip(0)
            part.update(batch(source, images[ids], ids=ids))
    merged = KID(extractor=PIXELS)
    merged.load_state(merge(*(part.state() for part in parts)))
    (row,) = merged.compute()
    assert (row.value, row.ci95) == (whole.value, whole.ci95)
    with pytest.raises(ValueError, match="generated picture 3 was given twice"):
        merged.update(batch("generated", sets[0][3:4], first_id=3))


def test_subsets_are_a_function_of_the_seed(batch, pictures):
    sets = pictures(30, 2), pictures(30, 2, 1)
    options = {"subset_size": 10, "num_subsets": 5}
    one, same, other = (score(batch, *sets, seed=seed, **options) for seed in (0, 0, 1))
    assert one.value == same.value != other.value
    assert one.ci95 is None
    assert one.details["std_of_subsets"] > 0


def test_wrong_options_and_too_few_pictures_are_named(batch, pictures):
    for options, message in [
        ({"subset_size": 1}, "subset_size must be at least 2, got 1"),
        ({"num_subsets": 0}, "num_subsets must be at least 1, got 0"),
        ({"seed": -1}, r"seed must be in \[0, 2\*\*32\), got -1"),
        ({"weights": "x.pth"}, "feature_extractor 'pixels' has no option 'weights'"),
    ]:
        with pytest.raises(ValueError, match=message):
            KID(extractor=PIXELS, **options)
    with pytest.raises(ValueError, match="an extractor is a name or"):
        KID(extractor={"size": 2})
    with pytest.raises(registry.PluginError, match="did you mean 'pixels'"):
        KID(extractor="pixel")
    with pytest.raises(ValueError, match="subset_size=10 pictures per set, got 9 and 30"):
        score(batch, pictures(9, 2), pictures(30, 2), subset_size=10)
    with pytest.raises(ValueError, match="there is no reference picture"):
        score(batch, pictures(9, 2), pictures(0, 2))
