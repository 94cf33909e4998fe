"""A small random open_clip model in open_clip's own folder layout."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

MODEL_CONFIG = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16,
    },
    "text_cfg": {
        "context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2,
    },
}  # fmt: skip


def write_open_clip_folder(folder: Path, **changes) -> Path:
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    config = {**MODEL_CONFIG, **changes}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {}})
    )
    torch.manual_seed(0)
    keywords = dict(config)
    custom = keywords.pop("custom_text", False)
    model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**keywords)
    with torch.no_grad():
        for parameter in model.parameters():  # far from the tiny initial values
            parameter.add_(torch.randn_like(parameter) * 0.1)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def open_clip_folder(tmp_path_factory) -> Path:
    return write_open_clip_folder(tmp_path_factory.mktemp("classic"))


@pytest.fixture(scope="session")
def custom_text_folder(tmp_path_factory) -> Path:
    return write_open_clip_folder(tmp_path_factory.mktemp("custom"), custom_text=True)
