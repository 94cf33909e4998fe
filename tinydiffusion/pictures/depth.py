"""Scaling of files of more than 8 bits per channel to 8 bits, and the value that means white."""

import math
import sys
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped, UInt8, UInt16
from PIL import Image

from tinydiffusion.pictures.colours import UnusablePictureError, strips

FULL = 65535  # white in 16 bits
TWELVE = 4095
RANGES = (255, 1023, TWELVE, 16383)
"""White in 8, 10, 12 and 14 bits, which cameras, microscopes and X-rays store in 16 bits."""
DEEP = ("RGB;16", "RGBA;16", "LA;16")  # Pillow's names, without the byte order
BRIGHTENED = "taken for 12 bits and brightened"

Depth = Literal["8 bits", "grey", "declared grey", "colour"]


def depth_of(image: Image.Image) -> Depth:
    """Return how a file stores its values, from its header; to be called before it is decoded.

    "declared grey": the file declares which value is white, and Pillow scales it by that.
    "colour": RGB or RGBA with 16 bits per channel, of which Pillow returns the higher 8.
    """
    tiles: Any = getattr(image, "tile", ())  # segments of the file, where there is one
    args = tiles[0].args if tiles else ""
    is_netpbm = image.format == "PPM" and tiles and tiles[0].codec_name.startswith("ppm")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return "declared grey" if is_netpbm else "grey"
    rawmode = args if isinstance(args, str) else str(args[0] if args else "")
    is_deep = rawmode[:-1] in DEEP or (is_netpbm and tuple(args) == ("RGB", FULL))
    return "colour" if is_deep and image.mode in ("RGB", "RGBA") else "8 bits"


def to_8_bits(
    image: Image.Image,
    reopen: Callable[[], Image.Image],
    depth: Depth,
    max_value: int | None,
) -> tuple[Image.Image, list[str]]:
    """Scale a decoded picture to 8 bits per channel; return it with notes on its range.

    White is `max_value`; without one it is 65535, or the range that 32-bit and float files seem to
    use. A 16-bit file without a value above 4095 is treated as one of 12 bits: at full range
    nothing in it would be brighter than 15 of 255. One without a value above 16383 is left as it
    is, with a note.

    Args:
        image: Picture, decoded in full.
        reopen: Function that opens the same file again, not decoded.
        depth: From `depth_of`.
        max_value: The value that means white; ignored for files that declare it themselves.

    Raises:
        UnusablePictureError: the picture has values that are not finite.
    """
    if depth == "8 bits":
        return image, []
    if depth == "colour":
        return _scale_colour(image, reopen, max_value)
    scaled, notes = _scale_grey(image, FULL if depth == "declared grey" else max_value)
    return scaled, ["grey of more than 8 bits scaled to 8", *notes]


def _white_of_16_bits(highest: int, max_value: int | None) -> tuple[int, list[str]]:
    """Return the value that means white in a 16-bit file, from its highest value, and notes."""
    if max_value is not None:
        clipped = [f"values above max_value={max_value} made white"] if highest > max_value else []
        return max_value, clipped
    bound = next((white for white in RANGES if highest <= white), FULL)
    if bound == FULL or highest == 0:
        return FULL, []
    found = f"16-bit file without a value above {bound}"
    if bound > TWELVE:
        return FULL, [f"{found}: if white is {bound}, max_value: {bound} brightens it"]
    more = f", max_value: {bound} brightens it more" if bound < TWELVE else ""
    return TWELVE, [f"{found}: {BRIGHTENED}; max_value: {FULL} leaves it dark{more}"]


def about_depth(note: str) -> bool:
    """Return whether a note of `to_8_bits` is about a range that was guessed or is possible."""
    return note.startswith("16-bit file")


# ---- grey ------------------------------------------------------------------------------------


def _scale_grey(image: Image.Image, max_value: int | None) -> tuple[Image.Image, list[str]]:
    """Scale grey of more than 8 bits to 8; only values above `max_value` are clipped."""
    extremes = [(v.min(), v.max()) for v in (np.asarray(strip) for _, strip in strips(image))]
    lowest, highest = float(np.min(extremes)), float(np.max(extremes))
    if not np.isfinite([lowest, highest]).all():
        raise UnusablePictureError("unreadable: values that are not finite")
    low, high, notes = _grey_range(image, lowest, highest, max_value)
    transparent = image.info.get("transparency")
    scaled = Image.new("L" if transparent is None else "LA", image.size)
    for top, strip in strips(image):
        values = np.asarray(strip)
        part = Image.fromarray(_scaled(values, low, high))
        if transparent is not None:
            part.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
        scaled.paste(part, (0, top))
    return _with_colour_space(scaled, image), notes


def _grey_range(
    image: Image.Image, lowest: float, highest: float, max_value: int | None
) -> tuple[float, float, list[str]]:
    """Return the values that mean black and white, and notes.

    32-bit and float files do not declare them: the smallest usual range that holds the picture is
    assumed.
    """
    is_16_bit = image.mode == "I" and image.format in ("PNG", "PPM")
    if is_16_bit or image.mode.startswith("I;16") or max_value is not None:
        white, notes = _white_of_16_bits(int(np.ceil(highest)), max_value)
        return 0.0, float(white), notes
    for white in (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0):
        if lowest >= 0 and highest <= white:
            return 0.0, white, []
    return lowest, max(highest, lowest + 1, float(np.nextafter(lowest, np.inf))), []


# ---- colour ----------------------------------------------------------------------------------


def _scale_colour(
    image: Image.Image, reopen: Callable[[], Image.Image], max_value: int | None
) -> tuple[Image.Image, list[str]]:
    """Scale RGB of 16 bits to 8; the lower 8 bits are read only where they matter."""
    extrema: Any = image.getextrema()
    brightest = max(high for _, high in extrema[:3])
    if max_value in (None, FULL) and brightest > (RANGES[-1] + 1) >> 8:
        return image, []
    values = _read_16_bits(reopen())
    if values.shape[2] in (2, 4):  # grey or RGB with opacity
        colours, opacity = values[..., :-1], values[..., -1]
    else:
        colours, opacity = values, None
    white, notes = _white_of_16_bits(int(colours.max()), max_value)
    scaled = Image.fromarray(_scaled(np.broadcast_to(colours, (*colours.shape[:2], 3)), 0.0, white))
    if opacity is not None:
        opaque = white if opacity.max() <= white else FULL
        scaled.putalpha(Image.fromarray(_scaled(opacity, 0.0, opaque)))
    elif (key := image.info.get("transparency")) is not None:
        transparent = (colours == np.array(key, np.uint16)).all(axis=2)
        scaled.putalpha(Image.fromarray(np.where(transparent, 0, 255).astype(np.uint8)))
    return _with_colour_space(scaled, image), notes


def _read_16_bits(image: Any) -> UInt16[np.ndarray, "H W C"]:
    """Read all 16 bits of each channel, which Pillow does not return."""
    file = image.fp
    if image.format == "PNG":
        import torch
        from torchvision.io import ImageReadMode, decode_png

        content = torch.frombuffer(bytearray(_bytes_of(file, 0)), dtype=torch.uint8)
        return decode_png(content, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
    if image.format == "PPM":
        pixels, shape = _bytes_of(file, image.tile[0].offset), (image.height, image.width, 3)
        return np.frombuffer(pixels, ">u2", math.prod(shape)).astype(np.uint16).reshape(shape)
    return _read_tiff(image)


def _read_tiff(image: Any) -> UInt16[np.ndarray, "H W C"]:
    """Read all 16 bits by decoding in both byte orders: Pillow keeps the first byte of each."""
    file = image.fp
    halves = []
    for swap in (False, True):
        file.seek(0)
        opened: Any = Image.open(file, formats=["TIFF"])
        if swap:
            opened.tile = [_swapped(tile) for tile in opened.tile]
        halves.append(np.asarray(opened, dtype=np.uint16))
    return (halves[0] << 8) | halves[1]


def _swapped(tile: Any) -> Any:
    """Return the tile with the other byte order; "N" is that of the machine."""
    rawmode, *others = tile.args
    other = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
    return tile._replace(args=(rawmode[:-1] + other[rawmode[-1]], *others))


def _bytes_of(file: Any, start: int) -> bytes:
    file.seek(start)
    return file.read()


def _scaled(
    values: Shaped[np.ndarray, "*shape"], low: float, high: float | int
) -> UInt8[np.ndarray, "*shape"]:
    """Scale values linearly to levels, 0 for `low` to 255 for `high`, and clip those beyond."""
    levels = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def _with_colour_space(scaled: Image.Image, image: Image.Image) -> Image.Image:
    kept = ("icc_profile", "gamma", "srgb")
    scaled.info = {key: image.info[key] for key in kept if key in image.info}
    return scaled
