"""Weights from files that are not trusted: hashed, read without running code, fitted strictly."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tinydiffusion.runtime.errors import MissingWeightsError, WeightsError
from tinydiffusion.runtime.hub import read_errors, reason_of


def file_sha256(path: Path) -> str:
    """Compute the SHA-256 of a weights file.

    Raises:
        MissingWeightsError: there is no such file.
    """
    if not path.is_file():
        raise MissingWeightsError(f"there is no weights file {path}")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the named tensors of a `.safetensors` file, or of a `.pth` file that holds no code.

    Raises:
        WeightsError: the file is damaged, or holds something else than tensors.
    """
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (*read_errors(), RuntimeError) as error:
        raise WeightsError(f"cannot read the weights file {path}: {reason_of(error)}") from error
    if not isinstance(tensors, Mapping) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise WeightsError(f"{path} must hold named tensors and nothing else")
    return dict(tensors)


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 over names and values, so that the file format does not matter."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
