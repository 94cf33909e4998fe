"""Pictures on disk."""

import contextlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from tinydiffusion.datasets._pictures import DECODE_ERRORS, is_picture_name


def to_pil(image: UInt8[Tensor, "C H W"]) -> Image.Image:
    """The picture as a PIL image."""
    return Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy())


def read_picture(file: Path) -> UInt8[Tensor, "3 H W"]:
    """The pixels of a picture that was written here."""
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def own_sizes(folder: Path) -> set[tuple[int, int]]:
    """(width, height) of the pictures in a folder and below, from their headers.

    Files that are no pictures have none; who loads them says so.
    """
    sizes = set()
    for file in folder.rglob("*"):
        if is_picture_name(file.name) and file.is_file():
            unreadable = contextlib.suppress(*DECODE_ERRORS, Image.DecompressionBombError)
            with unreadable, Image.open(file) as image:
                sizes.add(image.size)
    return sizes
