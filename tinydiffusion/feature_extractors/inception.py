"""The Inception network that FID is defined by, and the check that it really is that one."""

import hashlib
import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""The 2015 TensorFlow network of Heusel et al. (2017) as PyTorch tensors (95,628,359 bytes)."""


class WeightsError(ValueError):
    """The Inception weights are missing or are not the genuine ones."""


class Inception:
    """Features (N, 2048) of the TF1-compatible FID Inception; runs where the pictures are.

    Args:
        weights: A `.pth` or `.safetensors` file; None takes the genuine file from the cache folder
            ($TINYDIFFUSION_CACHE or ~/.cache/tinydiffusion), and downloads it there once.
        allow_unverified: Accept a file with another SHA-256; scores are then flagged.

    Raises:
        WeightsError: the file is missing, cannot be downloaded or is not the genuine one.
    """

    dimensions = 2048

    def __init__(self, *, weights: str | None = None, allow_unverified: bool = False) -> None:
        path = _cached_weights() if weights is None else Path(weights)
        if not path.is_file():
            raise WeightsError(f"there is no Inception weights file {path}")
        with path.open("rb") as file:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        self.verified = self.sha256 == WEIGHTS_SHA256
        if not self.verified and not allow_unverified:
            raise WeightsError(
                f"{path} has SHA-256 {self.sha256}, the FID Inception has {WEIGHTS_SHA256}; give "
                "the genuine file, or pass allow_unverified=True and have the scores flagged"
            )
        self.network = _network(path)

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N 2048"]:
        return self.network.to(images.device)(images)[0]

    def spec(self) -> dict[str, Any]:
        """What makes a number comparable."""
        return {
            "name": "inception-v3-tf1",
            "weights_sha256": self.sha256,
            "verified": self.verified,
            "resize": "TF1 bilinear to 299 x 299",
            "antialias": False,
            "normalise": "(x - 128) / 128",
            "layer": "2048",
            "dtype": "float32",
        }


def _network(path: Path) -> nn.Module:
    """torch-fidelity's network with the tensors of the file."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # torch-fidelity unpickles whatever file it is given. It is given a copy in memory of tensors
    # that were read safely.
    copy = io.BytesIO()
    try:
        torch.save(_tensors(path), copy)
        copy.seek(0)
        return FeatureExtractorInceptionV3(
            "tinydiffusion-inception", ["2048"], feature_extractor_weights_path=copy
        )
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise WeightsError(f"{path} does not hold the Inception tensors: {error}") from error


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _cached_weights() -> Path:
    """The genuine file in the cache folder, downloaded if it is not there yet."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    folder = os.environ.get("TINYDIFFUSION_CACHE") or Path.home() / ".cache" / "tinydiffusion"
    path = Path(folder) / URL_INCEPTION_V3.rpartition("/")[2]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), WEIGHTS_SHA256)
        except (OSError, RuntimeError) as error:  # no network or disk; another file came
            raise WeightsError(
                f"cannot download the FID Inception from {URL_INCEPTION_V3} ({error}); put that "
                f"file at {path} by hand, or name it with the option weights=..."
            ) from error
    return path


PLUGIN = Inception
