"""Rendering of scenes as antialiased pictures."""

import math

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from tinydiffusion.scenes.font import draw_word
from tinydiffusion.scenes.vocabulary import BACKGROUNDS, COLOURS, WORD, Scene

_RGB = {
    name: np.array(rgb, np.float32)[:, None, None] for name, rgb in (COLOURS | BACKGROUNDS).items()
}


def render(scene: Scene, size: int = 32) -> UInt8[Tensor, "3 H W"]:
    """Draw the picture of a scene, `size` pixels square.

    Raises:
        ValueError: `size` is odd or below 16.
    """
    if size < 16 or size % 2:
        raise ValueError(f"size={size!r} is not an even number from 16 on; 32 is the default")
    canvas = np.empty((3, size, size), np.float32)
    canvas[:] = _RGB[scene.background]
    for o in scene.objects:
        x, y, radius = o.x * size, o.y * size, o.radius * size
        if o.shape == WORD:
            canvas += draw_word(o.text, x, y, radius, size) * (_RGB[o.colour] - canvas)
            continue
        rows, columns = _box(y, radius, size), _box(x, radius, size)
        patch = canvas[:, rows, columns]
        patch += coverage(o.shape, x, y, radius, rows, columns) * (_RGB[o.colour] - patch)
    return torch.from_numpy((canvas + 0.5).astype(np.uint8))


def coverage(
    shape: str, x: float, y: float, radius: float, rows: slice, columns: slice
) -> Float32[np.ndarray, "rows columns"]:
    """Return the share of each pixel of a box that an object covers, in [0, 1].

    All lengths are in pixels; pixel i spans [i, i + 1]. The share is computed from the signed
    distance of an edge from the pixel's centre, which is exact for edges along the axes.
    """
    dx = np.abs(np.arange(columns.start, columns.stop, dtype=np.float32) + np.float32(0.5 - x))
    dy = (np.arange(rows.start, rows.stop, dtype=np.float32) + np.float32(0.5 - y))[:, None]
    if shape == "circle":
        return _clip(radius + 0.5 - np.sqrt(dx * dx + dy * dy))
    if shape == "square":
        return _clip(radius + 0.5 - dx) * _clip(radius + 0.5 - np.abs(dy))
    sides = (radius + dy - 2 * dx) / math.sqrt(5)  # apex on top, as wide as high
    return _clip(sides + 0.5) * _clip(radius + 0.5 - dy)


def _box(centre: float, radius: float, size: int) -> slice:
    return slice(max(0, int(centre - radius)), min(size, int(centre + radius) + 1))


def _clip(values: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    return np.minimum(np.maximum(values, 0), 1)
