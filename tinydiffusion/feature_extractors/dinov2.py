"""DINOv2: a vision transformer trained on pictures alone, without any labels or captions."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import interpolate

from tinydiffusion.feature_extractors._resize import bicubic
from tinydiffusion.feature_extractors._weights import file_sha256, read_tensors
from tinydiffusion.runtime.errors import WeightsError

SIDE = 224
PATCH = 14
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
OFFSET = 0.1
"""DINOv2 stretches its positions by a tenth of a patch too much, and was evaluated that way."""


class DINOv2:
    """The class token (N, 384 to 1536) of Oquab et al. (2023), https://arxiv.org/abs/2304.07193.

    Pictures are resized to 224 x 224 as Stein et al. (2023) do it for FD-DINOv2. Runs where the
    pictures are.

    Args:
        weights: A `.pth` or `.safetensors` file in the layout of torch.hub or of timm.
        model: timm's name of the architecture, such as `vit_small_patch14_dinov2`.

    Raises:
        MissingWeightsError: there is no such file.
        WeightsError: it does not belong to the architecture.
        ValueError: timm does not know the architecture.
    """

    def __init__(self, *, weights: str, model: str = "vit_large_patch14_dinov2") -> None:
        path = Path(weights)
        self.sha256, self.model = file_sha256(path), model
        self.network = _load(model, path).eval()
        self.dimensions = int(self.network.get_parameter("norm.weight").numel())

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        """Compute the class tokens."""
        mean, std = (images.new_tensor(v, dtype=torch.float)[:, None, None] for v in (MEAN, STD))
        pictures = bicubic(images, SIDE) / 255
        return self.network.to(images.device)((pictures - mean) / std)

    def spec(self) -> dict[str, Any]:
        """Return what makes a number comparable."""
        return {
            "name": self.model,
            "weights_sha256": self.sha256,
            "verified": False,  # nobody publishes hashes to check against
            "resize": f"PIL bicubic in floating point, clipped, to {SIDE} x {SIDE}",
            "antialias": True,
            "normalise": "mean and standard deviation of ImageNet",
            "layer": "class token",
            "dtype": "float32",
        }


def _load(model: str, path: Path) -> nn.Module:
    """Build timm's network with the tensors of the file; nothing is downloaded."""
    import timm

    if "dinov2" not in model or not timm.is_model(model):
        known = ", ".join(timm.list_models("*dinov2*"))
        raise ValueError(f"timm has no DINOv2 model {model!r}; it has {known}")
    network = timm.create_model(model, pretrained=False, num_classes=0, img_size=SIDE)
    tensors = read_tensors(path)
    positions = tensors.get("pos_embed")
    if positions is None:
        raise WeightsError(f"{path} does not hold DINOv2: it has no pos_embed")
    tensors["pos_embed"] = _fit_positions(positions)
    fitted: Any = timm.models.vision_transformer.checkpoint_filter_fn
    try:
        network.load_state_dict(fitted(tensors, network))
    except RuntimeError as error:
        raise WeightsError(f"{path} does not hold {model}: {error}") from error
    return network


def _fit_positions(positions: Float[Tensor, "1 L D"]) -> Float[Tensor, "1 M D"]:
    """Resize positions from 37 x 37 to 16 x 16 patches, as torch.hub's DINOv2 does."""
    side_in, side_out = int((positions.shape[1]) ** 0.5), SIDE // PATCH
    prefix = positions.shape[1] - side_in**2  # 1 with the class token, 0 without
    if side_in == side_out:
        return positions
    grid = positions[:, prefix:].unflatten(1, (side_in, side_in)).permute(0, 3, 1, 2)
    scale = (side_out + OFFSET) / side_in
    grid = interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([positions[:, :prefix], grid.flatten(2).mT], dim=1)


PLUGIN = DINOv2
