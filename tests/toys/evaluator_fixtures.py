"""Batches for evaluators and the merging of their states."""

import json
from collections.abc import Callable

import pytest
import torch
from torchvision.models import inception_v3

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


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory) -> str:
    """A file of random tensors under the names of the genuine FID Inception."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    for module in network.modules():  # He scale, so that pictures still differ behind 90 layers
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data *= 6**0.5
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return str(path)


CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A tiny random CLIP as open_clip keeps models in folders."""
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clips") / "tiny"
    folder.mkdir()
    config = json.dumps({"model_cfg": CLIP, "preprocess_cfg": {}})
    (folder / "open_clip_config.json").write_text(config)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = open_clip.CLIP(**CLIP)
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def clip_model(clip_folder):
    return f"local-dir:{clip_folder}"


@pytest.fixture
def batch() -> Callable[..., EvalBatch]:
    return _batch


@pytest.fixture
def merge() -> Callable[..., EvaluatorState]:
    return _merge


@pytest.fixture
def pictures() -> Callable[..., torch.Tensor]:
    return _pictures
