"""The Inception network that defines FID, and the check that the weights are genuine."""

import io
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from tinydiffusion.feature_extractors._resize import bicubic, bilinear, tf1
from tinydiffusion.feature_extractors._weights import file_sha256, read_tensors
from tinydiffusion.runtime.errors import MissingWeightsError, WeightsError

WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""The 2015 TensorFlow network of Heusel et al. (2017) as PyTorch tensors (95,628,359 bytes)."""

SIDE = 299
Layer = Literal[64, 192, 768, 2048, "logits"]
STAGES = {
    64: ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1"),
    192: ("Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"),
    768: (*(f"Mixed_5{c}" for c in "bcd"), *(f"Mixed_6{c}" for c in "abcde")),
    2048: ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
}
"""Layer, named by its width -> the blocks between it and the layer before."""

RESIZES = {
    "tf1": (tf1, "TF1 bilinear, asymmetric grid", False, "(x - 128) / 128"),
    "pytorch": (bilinear, "bilinear, half-pixel grid", False, "2 x / 255 - 1"),
    "clean": (bicubic, "PIL bicubic in floating point, clipped", True, "(x - 128) / 128"),
}
"""Name -> function, description, whether it is antialiased, and how levels are scaled."""


class Inception:
    """Features (N, 64 to 2048) or logits (N, 1008) of the FID Inception.

    Runs where the pictures are. The layers 64, 192 and 768 are averaged over the picture; `logits`
    are without bias, as the inception score has them.

    Args:
        weights: A `.pth` or `.safetensors` file; None takes the genuine file from the cache folder
            ($TINYDIFFUSION_CACHE or ~/.cache/tinydiffusion), and downloads it there once.
        allow_unverified: Accept a file with another SHA-256; scores are then flagged.
        layer: Where the features are taken.
        resize: How pictures come to 299 x 299: as torch-fidelity (tf1), pytorch-fid (pytorch) or
            clean-fid (clean) does it. Values with different ones do not compare.

    Raises:
        MissingWeightsError: the file is missing or cannot be downloaded.
        WeightsError: it is not the genuine one.
    """

    def __init__(
        self,
        *,
        weights: str | None = None,
        allow_unverified: bool = False,
        layer: Layer = 2048,
        resize: Literal["tf1", "pytorch", "clean"] = "tf1",
    ) -> None:
        path = _cached_weights() if weights is None else Path(weights)
        self.sha256 = file_sha256(path)
        self.verified = self.sha256 == WEIGHTS_SHA256
        if not self.verified and not allow_unverified:
            raise WeightsError(
                f"{path} has SHA-256 {self.sha256}, the FID Inception has {WEIGHTS_SHA256}; give "
                "the genuine file, or pass allow_unverified=True and have the scores flagged"
            )
        self.layer, self.resize = layer, resize
        self.dimensions = 1008 if layer == "logits" else layer
        self.network = _network(path, self.sha256)

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        """Compute the features of the layer."""
        return self.network.to(images.device)(images, self.resize, self.layer)

    def spec(self) -> dict[str, Any]:
        """Return what makes a number comparable."""
        _, description, antialias, normalise = RESIZES[self.resize]
        return {
            "name": "fid-inception-v3",
            "weights_sha256": self.sha256,
            "verified": self.verified,
            "resize": f"{description}, to {SIDE} x {SIDE}",
            "antialias": antialias,
            "normalise": normalise,
            "layer": str(self.layer),
            "dtype": "float32",
        }


class _Network(nn.Module):
    """All layers of one weights file.

    The 2048 features of the last pictures are kept, since FID, KID and the inception score's
    logits are all computed from them.
    """

    def __init__(self, blocks: nn.Module) -> None:
        super().__init__()
        self.stages = nn.ModuleDict(
            {
                str(layer): nn.Sequential(*(blocks.get_submodule(name) for name in names))
                for layer, names in STAGES.items()
            }
        )
        self.classes = blocks.get_parameter("fc.weight")
        self._last: tuple[Tensor | None, str] = (None, "")
        self._features = torch.zeros(0)

    def forward(
        self, images: UInt8[Tensor, "N 3 H W"], resize: str, layer: Layer
    ) -> Float[Tensor, "N D"]:
        if layer == "logits":
            return self(images, resize, 2048) @ self.classes.T
        if layer != 2048:
            return self._run(images, resize, layer)
        if self._last[0] is not images or self._last[1] != resize:
            self._last, self._features = (images, resize), self._run(images, resize, layer)
        return self._features

    def _run(
        self, images: UInt8[Tensor, "N 3 H W"], resize: str, layer: Layer
    ) -> Float[Tensor, "N D"]:
        x = RESIZES[resize][0](images, SIDE)
        x = 2 * (x / 255) - 1 if resize == "pytorch" else (x - 128) / 128
        for name, stage in self.stages.items():
            x = stage(x)
            if name == str(layer):
                break
        return x.mean(dim=(2, 3))


@lru_cache(maxsize=1)
def _network(path: Path, sha256: str) -> _Network:
    """Load the network of a file with this content, once for all layers and resizes."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # torch-fidelity unpickles any file that is passed to it. Here it gets a copy in memory of
    # tensors that were read safely.
    copy = io.BytesIO()
    torch.save(read_tensors(path), copy)
    copy.seek(0)
    try:
        blocks = FeatureExtractorInceptionV3(
            f"inception-{sha256[:8]}", ["2048"], feature_extractor_weights_path=copy
        )
    except RuntimeError as error:
        raise WeightsError(f"{path} does not hold the Inception tensors: {error}") from error
    return _Network(blocks).eval()


def _cached_weights() -> Path:
    """Return the path of the genuine file in the cache folder; download it if it is not there."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    folder = os.environ.get("TINYDIFFUSION_CACHE") or Path.home() / ".cache" / "tinydiffusion"
    path = Path(folder) / URL_INCEPTION_V3.rpartition("/")[2]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), WEIGHTS_SHA256)
        except (OSError, RuntimeError) as error:  # no network or disk, or another file came
            raise MissingWeightsError(
                f"cannot download the FID Inception from {URL_INCEPTION_V3} ({error}); put that "
                f"file at {path} by hand, or name it with the option weights=..."
            ) from error
    return path


PLUGIN = Inception
