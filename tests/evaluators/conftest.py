"""Batches for evaluators and the merging of their states."""

from collections.abc import Callable

import pytest
import torch

from tinydiffusion.protocols import EvalBatch, EvaluatorState


def _batch(source, images, *, prompts=None, first_id=0, ids=None) -> EvalBatch:
    ids = torch.arange(first_id, first_id + len(images)) if ids is None else ids
    prompts = [""] * len(images) if prompts is None else prompts
    return {"source": source, "id": ids, "image": images, "prompt": prompts}


def _merge(*states: EvaluatorState) -> EvaluatorState:
    merged = {}
    for key, (_, how) in states[0].items():
        parts = [state[key][0] for state in states]
        merged[key] = (sum(parts) if how == "sum" else torch.cat(parts), how)
    return merged


def _pictures(n: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.fixture
def batch() -> Callable[..., EvalBatch]:
    return _batch


@pytest.fixture
def merge() -> Callable[..., EvaluatorState]:
    return _merge


@pytest.fixture
def pictures() -> Callable[..., torch.Tensor]:
    return _pictures
