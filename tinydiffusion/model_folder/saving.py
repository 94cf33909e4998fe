"""Saving a model folder: at any moment the old model exists, or the new one."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from tinydiffusion import __version__
from tinydiffusion.config import to_dict
from tinydiffusion.model_folder.layout import (
    CHECKSUMS,
    COMPONENTS,
    INDEX,
    PIPELINE_SOURCE,
    WEIGHTS,
    Model,
    network_sizes,
    portable,
)
from tinydiffusion.model_folder.weights import first_non_finite
from tinydiffusion.runtime.durable import sync_folder, write_synced
from tinydiffusion.runtime.errors import NonFiniteError


def save_model(folder: Path, model: Model) -> None:
    """Write the model folder; at any moment the old model exists, or the new one.

    Raises:
        ValueError: the folder holds something else than a model.
        NonFiniteError: a tensor holds NaN or infinity; the message names it. Nothing is written.
    """
    folder = folder.resolve()
    check_replaceable(folder)
    encoder, config = model.text_encoder, model.config
    options = {
        "network": {**config.network, **network_sizes(encoder, model.image_shape)},
        "text_encoder": {"name": config.text_encoder["name"], **encoder.config()},
    }
    files = {"pipeline.py": PIPELINE_SOURCE.encode()}
    for kind, module in zip(COMPONENTS, model[:2], strict=True):
        files |= _component_files(kind, module, portable(kind, options[kind]))
    checksums = {
        name: hashlib.sha256(data).hexdigest()
        for name, data in files.items()
        if not name.endswith(".py")
    }
    files[INDEX] = _json_bytes(_index(model, checksums))
    _write_folder(folder, files)


def check_replaceable(folder: Path) -> None:
    """Raise ValueError where a folder holds something else than a model."""
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not (empty or (folder / INDEX).is_file()):
        raise ValueError(f"{folder} is there, but no model; save the model to another folder")


def _component_files(kind: str, module: nn.Module, config: dict[str, Any]) -> dict[str, bytes]:
    tensors = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    if (bad := first_non_finite(tensors)) is not None:
        raise NonFiniteError(f"{kind} tensor {bad!r} holds NaN or infinity; the model is not saved")
    return {
        f"{kind}/config.json": _json_bytes(config),
        f"{kind}/{WEIGHTS}": safetensors.torch.save(tensors, metadata={"format": "pt"}),
        f"{kind}/pipeline.py": PIPELINE_SOURCE.encode(),
    }


def _index(model: Model, checksums: Mapping[str, str]) -> dict[str, Any]:
    """Make the index: what diffusers and `open_model` need about the whole folder."""
    config = to_dict(model.config)
    config["init_from"] = None  # a path on the machine that trained the model
    for kind in COMPONENTS:
        config[kind] = portable(kind, config[kind])
    return {
        "_class_name": ["pipeline", "TextToImagePipeline"],
        "_tinydiffusion_version": __version__,
        **{component: ["pipeline", "Component"] for component in COMPONENTS},
        "image_shape": model.image_shape,
        "tinydiffusion_config": config,
        CHECKSUMS: checksums,
    }


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write all files to a new folder, then replace the old one; other files in it are kept."""
    new, old = (folder.with_name(f".{prefix}-{folder.name}") for prefix in ("tmp", "trash"))
    _remove(new)
    for name, data in files.items():
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        write_synced(new / name, data)
    if folder.exists():
        _copy_missing(folder, new)
    for written in (*(new / kind for kind in COMPONENTS), new):
        sync_folder(written)
    if folder.exists():
        _remove(old)
        folder.rename(old)
    new.rename(folder)
    sync_folder(folder.parent)
    _remove(old)


def _copy_missing(folder: Path, new: Path) -> None:
    for file in folder.rglob("*"):
        target = new / file.relative_to(folder)
        if (file.is_symlink() or not file.is_dir()) and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target, follow_symlinks=False)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
