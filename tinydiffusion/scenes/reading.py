"""Reading of the scene that a picture shows, if the picture is well-formed."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor

from tinydiffusion.scenes.font import draw_word, find_word, soften
from tinydiffusion.scenes.render import coverage
from tinydiffusion.scenes.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    WORD,
    Object,
    Scene,
)

COLOUR_LIMIT = 45.0  # distance in RGB levels within which two colours count as the same
SPECK = 0.005  # share of the picture below which a component is no object
MAX_SPECKS = 0.015  # share of the picture that specks may cover
MAX_FOREIGN = 0.1  # share of a component that may be of another colour
RADIUS_RANGE = (0.07, 0.30)  # in units of the side
MIN_FIT, MIN_LEAD = 0.80, 0.03  # overlap with the best shape, and its lead over the next
MAX_SLOPE = 0.6  # slope beyond which, towards the diagonal, a pair is in no relation
AREA = {"circle": math.pi, "square": 4.0, "triangle": 2.0}  # at radius 1
CENTROID = {"circle": 0.0, "square": 0.0, "triangle": 1 / 3}  # below the centre, at radius 1

RGB = Float32[np.ndarray, "3 1 1"]
Picture = Float32[np.ndarray, "3 H W"]
Mask = Bool[np.ndarray, "H W"]


def read(image: UInt8[Tensor, "3 H W"]) -> Scene | None:
    """Read the scene that a picture shows; None if it is not well-formed.

    A well-formed picture has a plain background of a known colour, and on it any number (including
    none) of clearly shaped objects of known colours, or one word in a known colour.
    """
    pixels = image.cpu().numpy().astype(np.float32)
    ground = _border_colour(pixels)
    background = _nearest(ground, BACKGROUNDS)
    if background is None:
        return None
    foreground = _distance(pixels, ground) > COLOUR_LIMIT
    objects = _read_shapes(pixels, ground, foreground)
    if objects is None:
        word = _read_word(pixels, ground, foreground)
        objects = None if word is None else [word]
    return None if objects is None else Scene(background, tuple(objects))


def relation(first: Object, second: Object) -> str | None:
    """Return the relation of the first object to the second; None near the diagonal."""
    dx, dy = second.x - first.x, second.y - first.y
    if abs(dy) <= MAX_SLOPE * abs(dx):
        return "left of" if dx > 0 else "right of"
    if abs(dx) <= MAX_SLOPE * abs(dy):
        return "above" if dy > 0 else "below"
    return None


def connected_components(mask: Mask) -> list[Mask]:
    """Split a mask into its connected parts (4 neighbours)."""
    width = mask.shape[1] + 2
    # Padded, so that the ends of rows are not neighbours.
    todo = set(np.flatnonzero(np.pad(mask, 1)).tolist())
    parts = []
    while todo:
        stack = [todo.pop()]
        part = np.zeros((mask.shape[0] + 2) * width, bool)
        while stack:
            pixel = stack.pop()
            part[pixel] = True
            neighbours = {pixel - 1, pixel + 1, pixel - width, pixel + width} & todo
            todo -= neighbours
            stack.extend(neighbours)
        parts.append(part.reshape(-1, width)[1:-1, 1:-1])
    return parts


def _read_shapes(pixels: Picture, ground: RGB, foreground: Mask) -> list[Object] | None:
    """Read every object; None if one is not clear, or if there are too many specks."""
    components = connected_components(foreground)
    parts = [part for part in components if part.sum() >= SPECK * part.size]
    specks = foreground.sum() - sum(part.sum() for part in parts)
    if specks > MAX_SPECKS * foreground.size:
        return None
    objects = []
    for part in parts:
        found = _read_object(pixels, ground, part, foreground)
        if found is None:
            return None
        objects.append(found)
    return objects


def _read_word(pixels: Picture, ground: RGB, foreground: Mask) -> Object | None:
    """Read a word that is all of the foreground; None if a letter or the colour is not clear.

    Strokes are thin, so that few pixels have the pure colour: it is fitted to the letters that were
    found, drawn with the sharpness of the picture.
    """
    contrast = _distance(pixels, ground)
    side = pixels.shape[-1]
    found = find_word(np.clip(contrast / np.quantile(contrast[foreground], 0.75), 0, 1))
    if found is None:
        return None
    text, x, y, radius = found
    sharp = draw_word(text, x, y, radius, side)
    soft = soften(sharp)
    fits = [_fit_colour(pixels, ground, alpha) for alpha in (sharp, (sharp + soft) / 2, soft)]
    rgb, errors = min(fits, key=lambda fit: float((fit[1] ** 2).sum()))
    colour = _nearest(rgb, COLOURS)
    if colour is None or (errors > COLOUR_LIMIT)[foreground].mean() > MAX_FOREIGN:
        return None
    return Object(WORD, colour, x / side, y / side, radius / side, text)


def _fit_colour(
    pixels: Picture, ground: RGB, alpha: Float32[np.ndarray, "H W"]
) -> tuple[RGB, Float32[np.ndarray, "H W"]]:
    """Fit the colour of a mask `alpha` over the ground by least squares; return it and errors."""
    rgb = ground + ((pixels - ground) * alpha).sum(axis=(1, 2), keepdims=True) / (alpha**2).sum()
    return rgb, _distance(pixels, ground + alpha * (rgb - ground))


@dataclass(frozen=True)
class _Fit:
    overlap: float  # intersection over union with the soft mask
    object: Object


def _read_object(pixels: Picture, ground: RGB, part: Mask, foreground: Mask) -> Object | None:
    """Read the object of one component; None if its colour or its shape is not a known one."""
    contrast = _distance(pixels, ground)[part]
    core = pixels[:, part][:, contrast >= 0.9 * np.quantile(contrast, 0.75)]
    rgb = np.median(core, axis=1)[:, None, None]
    colour = _nearest(rgb, COLOURS)
    alpha = _opacity(pixels, ground, rgb)
    foreign = _distance(pixels, ground + alpha * (rgb - ground))[part] > COLOUR_LIMIT
    if colour is None or foreign.mean() > MAX_FOREIGN:
        return None
    alpha = np.where(_grow(part) & (part | ~foreground), alpha, 0)
    fits = sorted((_fit(shape, colour, alpha) for shape in SHAPES), key=lambda fit: -fit.overlap)
    best, second = fits[:2]
    well_shaped = best.overlap >= max(MIN_FIT, second.overlap + MIN_LEAD)
    return best.object if well_shaped and _in_range(best.object.radius) else None


def _fit(shape: str, colour: str, alpha: Float32[np.ndarray, "H W"]) -> _Fit:
    """Fit a shape to a soft mask, with the same area and centroid.

    Moments give size and sub-pixel position directly, without a search over templates.
    """
    height, width = alpha.shape
    area = float(alpha.sum())
    radius = math.sqrt(area / AREA[shape])
    x = float(alpha.sum(axis=0) @ (np.arange(width) + 0.5)) / area
    y = float(alpha.sum(axis=1) @ (np.arange(height) + 0.5)) / area - CENTROID[shape] * radius
    drawn = coverage(shape, x, y, radius, slice(0, height), slice(0, width))
    overlap = max(_overlap(alpha, drawn), _overlap(alpha, soften(drawn)))
    return _Fit(overlap, Object(shape, colour, x / width, y / height, radius / width))


def _overlap(a: Float32[np.ndarray, "H W"], b: Float32[np.ndarray, "H W"]) -> float:
    return float(np.minimum(a, b).sum() / np.maximum(a, b).sum())


def _border_colour(pixels: Picture) -> RGB:
    ring = max(1, pixels.shape[-1] // 32)
    inner = np.zeros(pixels.shape[1:], bool)
    inner[ring:-ring, ring:-ring] = True
    return np.median(pixels[:, ~inner], axis=1)[:, None, None]


def _nearest(rgb: RGB, palette: dict[str, tuple[int, int, int]]) -> str | None:
    distance = {name: math.dist(rgb.ravel(), known) for name, known in palette.items()}
    name = min(distance, key=distance.__getitem__)
    return name if distance[name] <= COLOUR_LIMIT else None


def _distance(pixels: Picture, other: RGB | Picture) -> Float32[np.ndarray, "H W"]:
    """Compute the Euclidean distance of each pixel from a colour, or from another picture."""
    return np.sqrt(((pixels - other) ** 2).sum(axis=0))


def _opacity(pixels: Picture, ground: RGB, rgb: RGB) -> Float32[np.ndarray, "H W"]:
    """Compute the share of the colour in each pixel: its place on the line from ground to `rgb`."""
    line = rgb - ground
    return np.clip(((pixels - ground) * line).sum(axis=0) / (line**2).sum(), 0, 1)


def _grow(mask: Mask) -> Mask:
    """Add the 8 neighbours to a mask, where an antialiased edge fades out."""
    padded = np.pad(mask, 1)
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]


def _in_range(radius: float) -> bool:
    return RADIUS_RANGE[0] <= radius <= RADIUS_RANGE[1]
