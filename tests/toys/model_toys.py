"""A tiny model, and what a stranger can do to its folder."""

import hashlib
import json
import re
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from tinydiffusion.build import build_dataset, build_objective
from tinydiffusion.config import Config, SamplingConfig
from tinydiffusion.model_folder.layout import CHECKSUMS, INDEX
from tinydiffusion.model_folder.opening import ModelFolderError
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.survey import survey

STEPS = 4
SECONDS, MEGABYTES = 2, 300


def random_model(channels: Sequence[int] = (32, 32)) -> TextToImage:
    """Random weights throughout, so that time, text and every layer matter."""
    config = Config(
        dataset={"name": "scenes", "num_scenes": 64},
        text_encoder={"name": "clip", "width": 32, "layers": 1, "heads": 2},
        network={"name": "unet", "channels": list(channels)},
        sampling=SamplingConfig(steps=STEPS),
    )
    dataset = build_dataset(config.dataset)
    captions, _ = survey(dataset)
    objective = build_objective(config, captions).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in objective.parameters():
        if not parameter.any():  # initialised to zero
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.02
    network, text_encoder = objective.denoiser.network, objective.text_encoder
    return TextToImage(
        network, text_encoder, config, dataset[0]["image"].shape, precision="float32"
    )


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def edit_json(file: Path, **changes: Any) -> None:
    """Set dotted keys: `edit_json(file, **{"diffusion.shift": 2})`."""
    value = json.loads(file.read_text())
    for key, new in changes.items():
        *sections, name = key.split(".")
        place = value
        for section in sections:
            place = place[section]
        place[name] = new
    file.write_text(json.dumps(value))


def seal(folder: Path) -> None:
    """Make the checksums those of the files, as whoever edits them on purpose would."""
    index = json.loads((folder / INDEX).read_text())
    for name in index[CHECKSUMS]:
        index[CHECKSUMS][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / INDEX).write_text(json.dumps(index))


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """Not `load_file`, whose tensors live in the file that is to be overwritten."""
    return load(file.read_bytes())


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def refusal(folder: Path) -> str:
    """The one line that refuses the folder, quickly and without much memory."""
    start, before = time.process_time(), peak()
    with pytest.raises(ModelFolderError) as caught:
        TextToImage.from_pretrained(folder)
    assert time.process_time() - start < SECONDS
    assert peak() - before < MEGABYTES
    message = str(caught.value)
    assert message.isprintable()  # one line, and nothing that a terminal obeys
    assert len(message) < 1000
    return message


def assert_found(pattern: str, text: str) -> None:
    assert re.search(pattern, text), text
