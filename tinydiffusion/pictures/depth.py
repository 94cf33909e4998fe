"""Files of more than 8 bits a channel -> 8 bits: which of their values means white."""

import math
import sys
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped, UInt8, UInt16
from PIL import Image

from tinydiffusion.pictures.colours import UnusablePictureError, strips

FULL = 65535  # white of 16 bits
TWELVE = 4095
RANGES = (255, 1023, TWELVE, 16383)
"""White of 8, 10, 12 and 14 bits, as cameras, microscopes and X-rays store them in 16 bits."""
DEEP = ("RGB;16", "RGBA;16", "LA;16")  # how Pillow calls them, but for the order of the bytes
BRIGHTENED = "taken for 12 bits and brightened"

Depth = Literal["8 bits", "grey", "declared grey", "colour"]


def depth_of(image: Image.Image) -> Depth:
    """Tell how a file holds its values, from its header; to be asked before it is decoded.

    "declared grey" says itself which value is white, and Pillow scales it by that. "colour" is RGB
    or RGBA of 16 bits a channel, of which Pillow gives the higher 8.
    """
    tiles: Any = getattr(image, "tile", ())  # how the file is cut up, where there is one
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
    """Scale a decoded picture to 8 bits a channel, and say what is worth knowing of its range.

    White is `max_value`; without one it is 65535, or what 32-bit and float files seem to use. A
    16-bit file without a value above 4095 is taken for one of 12 bits: at full range nothing in it
    would be brighter than 15 of 255. One without a value above 16383 is left, and named.

    Args:
        image: Decoded in full.
        reopen: Opens the same file anew, not decoded.
        depth: What `depth_of` gave.
        max_value: The value that means white; of files that declare it, theirs counts.

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
    """Decide which value of a 16-bit file means white, from the highest that it has."""
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
    """Whether a note of `to_8_bits` tells of a range that was guessed, or that may be meant."""
    return note.startswith("16-bit file")


# ---- grey ------------------------------------------------------------------------------------


def _scale_grey(image: Image.Image, max_value: int | None) -> tuple[Image.Image, list[str]]:
    """Grey of more than 8 bits as 8 bits, scaled and not clipped but for `max_value`."""
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
    """The values that mean black and white.

    32-bit and float files do not say: it is the smallest usual range that holds the picture.
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
    """RGB of 16 bits; its lower 8 bits are read only where they matter."""
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
    """All 16 bits of each channel, which Pillow does not give."""
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
    """Pillow keeps the first byte in the order that it is told, so both orders give both bytes."""
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
    """The tile in the other order of bytes; "N" is that of the machine."""
    rawmode, *others = tile.args
    other = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
    return tile._replace(args=(rawmode[:-1] + other[rawmode[-1]], *others))


def _bytes_of(file: Any, start: int) -> bytes:
    file.seek(start)
    return file.read()


def _scaled(
    values: Shaped[np.ndarray, "*shape"], low: float, high: float | int
) -> UInt8[np.ndarray, "*shape"]:
    """Values as levels from 0 for `low` to 255 for `high`; what is beyond is black or white."""
    levels = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def _with_colour_space(scaled: Image.Image, image: Image.Image) -> Image.Image:
    kept = ("icc_profile", "gamma", "srgb")
    scaled.info = {key: image.info[key] for key in kept if key in image.info}
    return scaled
