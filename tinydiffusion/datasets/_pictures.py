"""One picture file -> RGB pixels, whatever its colour mode; bad files are refused by reason."""

import functools
import io
import struct
import warnings
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TIFF", "WEBP")
"""What is opened; Pillow's other readers are old, or hand the file to another program (EPS)."""

UNREADABLE_SUFFIXES = frozenset({".avif", ".heic", ".heif", ".jxl"})
"""Pictures all the same, so that they are named as skipped and not overlooked."""

Transpose = Image.Transpose
UPRIGHT = {  # EXIF orientation -> what makes the picture upright
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
ORIENTATION_TAG = 0x0112

# What Pillow raises on files that are cut, damaged or not pictures at all.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, RuntimeError, struct.error)


class UnusablePictureError(ValueError):
    """A picture that cannot be trained on; the message is the reason."""


def load_picture(source: Path | bytes, shorter_side: int | None = None) -> Image.Image:
    """The upright RGB picture of a file (or of its bytes), decoded in full.

    Transparency is laid on white, of an animation the first frame is taken, and 16-bit, 32-bit
    and float grey is scaled, not clipped. The kind of file is told by its content, not its name.

    Args:
        source: A file, or the bytes of one.
        shorter_side: What the picture will be resized to; a JPEG more than four times as large is
            then decoded at a half, a quarter or an eighth of its size, which is much faster.

    Raises:
        UnusablePictureError: the file is missing, cut, damaged, not a picture, or so large (over
            89 million pixels in its header) that it could be a decompression bomb.
    """
    try:
        if isinstance(source, Path) and not source.is_file():
            raise UnusablePictureError("missing or not a file")
        return _decode(io.BytesIO(source) if isinstance(source, bytes) else source, shorter_side)
    except UnidentifiedImageError as error:
        raise UnusablePictureError("unreadable: not a picture of a known format") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnusablePictureError("too many pixels: over 89 million") from error
    except UnusablePictureError:
        raise
    except DECODE_ERRORS as error:
        raise UnusablePictureError(f"unreadable: {_detail(error)}") from error


def is_picture_name(name: str) -> bool:
    """Whether a file's name ends like a picture's, one that cannot be opened included."""
    return PurePosixPath(name).suffix.lower() in _picture_suffixes()


def resize_shorter_side(image: Image.Image, size: int) -> Image.Image:
    """The picture with its shorter side `size` pixels long and its proportions kept.

    Antialiased; a picture of that size already comes back as it is.
    """
    shorter = min(image.size)
    width, height = (max(size, round(side * size / shorter)) for side in image.size)
    # Lanczos alone costs time in proportion to the source, so far too large pictures are first
    # averaged in blocks, down to 3 times the target: no difference is visible.
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The middle `size` x `size` square of the picture."""
    left, top = ((side - size) // 2 for side in image.size)
    return image.crop((left, top, left + size, top + size))


@functools.cache
def _picture_suffixes() -> frozenset[str]:
    suffixes = Image.registered_extensions()
    return UNREADABLE_SUFFIXES.union(s for s, kind in suffixes.items() if kind in FORMATS)


def _decode(file: Path | io.BytesIO, shorter_side: int | None) -> Image.Image:
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # odd metadata; the pixels are what counts
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=known) as image:
            if shorter_side is not None:
                image.draft(None, (2 * shorter_side, 2 * shorter_side))
            image.load()
            orientation = _orientation(image)
            image = _to_rgb(image)
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation; a broken EXIF block does not make the picture unusable."""
    try:
        return image.getexif().get(ORIENTATION_TAG)
    except DECODE_ERRORS:
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _scale_grey(image).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        rgb = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert rgb is not None
        return rgb
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _scale_grey(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits as 8 bits, its full range kept."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise UnusablePictureError("unreadable: values that are not finite")
    low, high = _grey_range(image, float(values.min()), float(values.max()))
    return Image.fromarray(np.rint((values - low) * (255 / (high - low))).astype(np.uint8))


def _grey_range(image: Image.Image, lowest: float, highest: float) -> tuple[float, float]:
    """The values that mean black and white.

    32-bit and float files do not say: it is the smallest usual range that holds the picture.
    """
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        return 0.0, 65535.0
    for white in (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0):
        if lowest >= 0 and highest <= white:
            return 0.0, white
    return lowest, max(highest, lowest + 1)


def _detail(error: Exception) -> str:
    """The first line of what went wrong, without the path that Python puts into it."""
    words = (isinstance(error, OSError) and error.strerror) or str(error)
    return words.partition("\n")[0] or type(error).__name__
