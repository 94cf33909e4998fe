"""Conversion of any colour mode of Pillow to sRGB, in bounded memory."""

import functools
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageCms

STRIP = 1 << 20  # pixels converted at a time, so that only one strip has intermediate copies
SAME = 2  # levels of 255 by which a profile may change a colour and still count as sRGB
BASES = {"1": "L", "L": "L", "LA": "L", "La": "L", "CMYK": "CMYK", "LAB": "LAB"}
"""Mode -> mode that an ICC profile applies to; "RGB" for all others."""


class UnusablePictureError(ValueError):
    """A picture that cannot be trained on; the message is the reason."""


def to_srgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Convert a picture to mode RGB, in sRGB; return it with notes on its colours.

    Transparency is laid on white. CMYK, and RGB or grey that is not sRGB, is converted by its ICC
    profile.

    Args:
        image: Picture with 8 bits per channel, see `depth.to_8_bits`.
    """
    base = BASES.get(image.mode, "RGB")
    transform, note = _transform_of(image, base)
    notes = [note] if note else []
    if image.has_transparency_data:
        notes.append("transparency laid on white")
    elif image.mode == "RGB" and transform is None:
        return image, notes
    rgb = Image.new("RGB", image.size)
    for top, strip in strips(image):
        rgb.paste(_flatten(strip, base, transform), (0, top))
    return rgb, notes


def strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield strips of at most `STRIP` pixels of a picture, each with the index of its first row."""
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _flatten(image: Image.Image, base: str, transform: Any) -> Image.Image:
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    colours = image if image.mode == base else image.convert(base)
    if transform is not None:
        colours = ImageCms.applyTransform(colours, transform)
        assert colours is not None
    rgb = colours.convert("RGB")
    return (
        rgb if alpha is None else Image.composite(rgb, Image.new("RGB", rgb.size, "white"), alpha)
    )


def _transform_of(image: Image.Image, base: str) -> tuple[Any, str]:
    """Return the transform of a picture's colours to sRGB, None where not needed; and a note."""
    if base == "LAB":
        return _lab_transform(), ""
    if profile := image.info.get("icc_profile"):
        try:
            transform = _transform(profile, base)
        except (ImageCms.PyCMSError, OSError):
            return None, "broken or unfit ICC profile ignored"
        return transform, "converted to sRGB by the ICC profile" if transform else ""
    if base == "CMYK":
        return None, "CMYK without an ICC profile"
    gamma = image.info.get("gamma", 1 / 2.2)
    return None, "" if 0.44 < gamma < 0.47 or "srgb" in image.info else "gamma of the file ignored"


@functools.lru_cache(maxsize=8)
def _transform(profile: bytes, base: str) -> Any:
    transform = ImageCms.buildTransform(io.BytesIO(profile), _srgb(), base, "RGB")
    if base == "CMYK":
        return transform
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(64, 64, 3)
    probe = Image.fromarray(grid if base == "RGB" else grid[..., 0].copy())
    moved = np.asarray(ImageCms.applyTransform(probe, transform), dtype=int)
    is_srgb = np.abs(moved - np.asarray(probe.convert("RGB"))).max() <= SAME
    return None if is_srgb else transform


@functools.cache
def _srgb() -> Any:
    return ImageCms.createProfile("sRGB")


@functools.cache
def _lab_transform() -> Any:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), _srgb(), "LAB", "RGB")
