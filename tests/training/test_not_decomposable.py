"""Proves that a batch whose pictures are compared with each other is never cut in silence."""

import pytest
from training_toys import Autoencoder, trainer

from tinydiffusion.abilities import NotDecomposable


class Comparing(Autoencoder, NotDecomposable):
    """Says that it compares the pictures of a batch."""


def test_a_batch_that_must_not_be_cut_is_not_cut(tmp_path):
    trainer(tmp_path, objective=Comparing(), num_pictures=8).train()
    with pytest.raises(ValueError, match=r"Comparing compares .* got accumulation 2 and 1 proc"):
        trainer(tmp_path, objective=Comparing(), accumulation=2)
