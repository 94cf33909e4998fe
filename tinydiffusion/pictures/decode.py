"""Decoding of a picture file of any colour mode to RGB; bad files are refused with a reason."""

import functools
import hashlib
import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from tinydiffusion.pictures.colours import UnusablePictureError, to_srgb
from tinydiffusion.pictures.depth import depth_of, to_8_bits

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TIFF", "WEBP")
"""Formats that are opened; Pillow's other readers are old, or call another program (EPS)."""

UNREADABLE_SUFFIXES = frozenset({".avif", ".heic", ".heif", ".jxl"})
"""Suffixes that count as pictures even if unreadable, so that such files are listed as skipped."""

MAX_PIXELS = 89_478_485  # a quarter of a gigabyte as RGB, as in Pillow; limits decompression bombs
MAX_BYTES = 1 << 30
BIG = 16_000_000  # pixels; bigger pictures are decoded one at a time
_one_big_picture = threading.Lock()

Transpose = Image.Transpose
UPRIGHT = {  # EXIF orientation -> operation that makes the picture upright
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
TURNED = (5, 6, 7, 8)  # orientations that exchange width and height
ORIENTATION_TAG = 0x0112

# Exceptions of Pillow for files that are truncated, damaged or not pictures at all.
DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, RuntimeError, ArithmeticError,
    MemoryError, struct.error, zlib.error,
)  # fmt: skip

File = io.BytesIO | io.BufferedReader

Size = tuple[int, int]
"""Height and width, in pixels."""

FITS = ("crop", "pad")
"""How a picture of other proportions is fitted to a size: cropped, or with a white border."""


class PassingFaultError(UnusablePictureError):
    """A picture that cannot be read now because of the machine, not of the file."""


class GridError(UnusablePictureError):
    """A picture that is a grid of pictures, drawn by a command of this program."""


class Picture(NamedTuple):
    """A decoded picture."""

    image: Image.Image  # upright, mode RGB
    width: int  # width in the file, upright; a JPEG may be decoded at a smaller size
    height: int
    notes: list[str]  # changes that were made to it, and oddities


def load_picture(
    source: Path | bytes,
    size: Size | None = None,
    sha256: str | None = None,
    *,
    fit: str = "crop",
    max_value: int | None = None,
) -> Picture:
    """Read the upright RGB picture of a file (or of its bytes), decoded in full.

    Colours are converted to sRGB (see `to_srgb`), and of several frames the first is read. The
    format is detected by content, not name. May be called from several threads; the caller
    silences Pillow's warnings about odd metadata, see `quiet`.

    Args:
        source: A file, or the bytes of one.
        size: Height and width to `resize` the picture to; it is never enlarged. A JPEG more than
            four times as large is decoded at a half, a quarter or an eighth of its size, which is
            much faster.
        sha256: Expected `picture_sha256` of the source; None does not compare.
        fit: One of `FITS`: whether the picture is to cover the size or to fit into it.
        max_value: The value that means white in files of more than 8 bits, see `to_8_bits`.

    Raises:
        UnusablePictureError: the file is missing, truncated, damaged, not a picture, changed, or
            so large (over 89 million pixels in its header) that it may be a decompression bomb.
    """
    with _open(source) as file:
        if sha256 is not None and hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise UnusablePictureError("changed while the data set was read")
        return _decode(file, size, fit, max_value)


def picture_sha256(source: Path | bytes) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        UnusablePictureError: there is no such file, or it cannot be read.
    """
    with _open(source) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def upright_size(source: Path) -> tuple[int, int]:
    """Read the width and height of the upright picture from the header of its file.

    Raises:
        UnusablePictureError: see `load_picture`; damaged pixels are not detected.
    """
    with _open(source) as file:
        image = _read_header(file)
        width, height = image.size
        if width == height:  # EXIF, which a PNG may have behind its pixels, is not needed
            return width, height
        return (height, width) if _orientation(image)[0] in TURNED else (width, height)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's warnings inside the `with`, which report odd metadata of every file."""
    with warnings.catch_warnings():  # for the whole process, so not in the threads that decode
        warnings.filterwarnings("ignore", module="PIL")
        yield


def is_picture_name(name: str) -> bool:
    """Return whether a file has the suffix of a picture, including formats that are not opened."""
    return PurePosixPath(name).suffix.lower() in _picture_suffixes()


def fit_to(image: Image.Image, size: Size, fit: str) -> Image.Image:
    """Fit a picture to this size, with its proportions kept.

    Args:
        image: Picture in mode RGB.
        size: Height and width.
        fit: "crop" covers the size and keeps the middle; "pad" fits the whole picture into it, with
            a white border.
    """
    resized = resize(image, size, fit)
    return center_crop(resized, size) if fit == "crop" else pad(resized, size)


def resize(image: Image.Image, size: Size, fit: str) -> Image.Image:
    """Resize a picture, with its proportions kept, so that it covers the size or fits into it.

    The result is antialiased; a picture that has the size already is returned as it is.
    """
    width, height = scaled_size(image.size, size, fit)
    if (width, height) == image.size:
        return image
    # Lanczos alone takes time in proportion to the source, so pictures that are much too large are
    # first averaged in blocks, down to 3 times the target: no difference is visible.
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def is_large_enough(picture: tuple[int, int], size: Size, fit: str) -> bool:
    """Return whether a picture of this width and height fits the size without being enlarged."""
    width, height = picture
    tall, wide = size
    enough = width >= wide, height >= tall
    return all(enough) if fit == "crop" else any(enough)


def scaled_size(picture: tuple[int, int], size: Size, fit: str) -> tuple[int, int]:
    """Return the width and height of a picture scaled to cover a size, or to fit into it.

    Args:
        picture: Width and height of the picture.
        size: Height and width to cover or fit into.
        fit: One of `FITS`.
    """
    width, height = picture
    tall, wide = size
    is_height_met = (tall * width >= wide * height) == (fit == "crop")
    across = round(width * tall / height) if is_height_met else wide
    along = tall if is_height_met else round(height * wide / width)
    if fit == "crop":
        return max(wide, across), max(tall, along)
    return max(1, min(wide, across)), max(1, min(tall, along))


def center_crop(image: Image.Image, size: Size) -> Image.Image:
    """Crop the middle of a picture to this height and width."""
    height, width = size
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def pad(image: Image.Image, size: Size) -> Image.Image:
    """Put a picture in the middle of a white one of this height and width."""
    height, width = size
    if image.size == (width, height):
        return image
    padded = Image.new("RGB", (width, height), "white")
    padded.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return padded


@functools.cache
def _picture_suffixes() -> frozenset[str]:
    suffixes = Image.registered_extensions()
    return UNREADABLE_SUFFIXES.union(s for s, kind in suffixes.items() if kind in FORMATS)


@contextmanager
def _open(source: Path | bytes) -> Iterator[File]:
    """Open a picture file; raise UnusablePictureError in place of any error inside the `with`."""
    try:
        if isinstance(source, Path) and not source.is_file():  # opening a pipe would block for ever
            raise UnusablePictureError(_absence(source))
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            if file.seek(0, os.SEEK_END) > MAX_BYTES:
                raise UnusablePictureError("too large: over 1 GiB")
            file.seek(0)
            yield file
    except UnidentifiedImageError as error:
        raise UnusablePictureError("unreadable: not a picture of a known format") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnusablePictureError("too many pixels: over 89 million") from error
    except UnusablePictureError:
        raise
    except DECODE_ERRORS as error:
        # Pillow's own OSErrors have no errno: one with an errno comes from the disk.
        passing = isinstance(error, MemoryError) or getattr(error, "errno", None) is not None
        kind = PassingFaultError if passing else UnusablePictureError
        raise kind(f"unreadable: {_detail(error)}") from error


def _absence(source: Path) -> str:
    """Return why there is no file at a path; a broken link is named with its target."""
    if source.is_symlink() and not source.exists():
        return f"broken link: to {source.readlink()}"
    return "missing or not a file"


def _decode(file: File, size: Size | None, fit: str, max_value: int | None) -> Picture:
    image = _read_header(file)
    width, height = image.size
    if image.format == "PNG":
        image.verify()  # checksums, which decoding does not check
        image = _read_header(file)
    with _one_big_picture if width * height > BIG else nullcontext():
        if size is not None:
            image.draft(None, (2 * max(size), 2 * max(size)))  # the picture may be turned by 90°
        depth = depth_of(image)
        image.load()
        orientation, notes = _orientation(image)
        if getattr(image, "is_animated", False):  # formats of one frame lack the attribute
            notes.append("of several frames only the first is used")
        image, depth_notes = to_8_bits(image, lambda: _read_header(file), depth, max_value)
        image, colour_notes = to_srgb(image)
        if orientation in UPRIGHT:
            image = image.transpose(UPRIGHT[orientation])
        if orientation in TURNED:
            width, height = height, width
        if size is not None and is_large_enough((width, height), size, fit):
            image = resize(image, size, fit)
    return Picture(image, width, height, notes + depth_notes + colour_notes)


def _read_header(file: File) -> Image.Image:
    """Open a picture without decoding its pixels.

    Raises:
        UnusablePictureError: it has no pixels or too many, or is a grid drawn by this program.
    """
    Image.init()
    file.seek(0)
    image = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    if not image.width * image.height:
        raise UnusablePictureError("unreadable: no pixels")
    if image.width * image.height > MAX_PIXELS:
        raise UnusablePictureError("too many pixels: over 89 million")
    if image.format == "PNG" and _is_grid(image):
        raise GridError("grid of pictures: drawn by tinydiffusion")
    return image


def _is_grid(image: Image.Image) -> bool:
    """Return whether a PNG has the text chunks of this program's grids and contact sheets."""
    about = image.info
    return about.get("Software") == "tinydiffusion" or {"prompts", "seed"} <= about.keys()


def _orientation(image: Image.Image) -> tuple[int, list[str]]:
    """Return the EXIF orientation and notes; a broken EXIF block is noted and ignored."""
    try:
        exif = image.getexif()
        orientation = exif.get(ORIENTATION_TAG, 1)
        broken = bool(image.info.get("exif")) and not exif
    except DECODE_ERRORS:
        orientation, broken = 1, True
    if broken or orientation not in (1, *UPRIGHT):
        return 1, ["broken EXIF ignored"]
    return orientation, ["turned or mirrored as EXIF says"] if orientation != 1 else []


def _detail(error: Exception) -> str:
    """Return the first line of an error's message, without the path that Python adds."""
    words = (isinstance(error, OSError) and error.strerror) or str(error)
    return words.partition("\n")[0] or type(error).__name__
