"""Pictures as PIL images, and from disk."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor


def to_pil(image: UInt8[Tensor, "C H W"]) -> Image.Image:
    """Convert a picture to a PIL image."""
    return Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy())


def read_picture(file: Path) -> UInt8[Tensor, "3 H W"]:
    """Read the RGB pixels of a picture that this program has written."""
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
