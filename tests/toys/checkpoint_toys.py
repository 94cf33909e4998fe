"""Checkpoints small enough that every byte of them can be tried."""

import torch

from tinydiffusion.training.checkpoints.folder import PARTS, Checkpoint


def make(value):
    return Checkpoint(
        model={"weight": torch.full((2, 3), value), "bias": torch.full((3,), -value)},
        ema={"weight": torch.full((2, 3), value / 2)},
        optimizer={"weight/step": torch.tensor(value)},
        objective={"codebook": torch.full((2,), value)},
        state={"value": value, "identity": {"a": {"b": 1}}},
    )


def assert_is(checkpoint, value):
    for part in PARTS:
        ours, theirs = getattr(checkpoint, part), getattr(make(value), part)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert checkpoint.state == make(value).state
