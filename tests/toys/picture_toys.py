"""A picture that shows every mistake of place and colour, in all codecs and with odd profiles."""

import io
import struct

import numpy as np
from PIL import Image, ImageCms

RED, GREEN, BLUE, YELLOW = (230, 30, 40), (20, 180, 60), (40, 50, 220), (240, 220, 30)

CODECS = {  # name -> Pillow's format, its options, largest error of a channel away from edges
    "png": ("PNG", {}, 0),
    "bmp": ("BMP", {}, 0),
    "gif": ("GIF", {}, 0),
    "tiff": ("TIFF", {}, 0),
    "tiff lzw": ("TIFF", {"compression": "tiff_lzw"}, 0),
    "tiff deflate": ("TIFF", {"compression": "tiff_deflate"}, 0),
    "tiff jpeg": ("TIFF", {"compression": "jpeg", "quality": 95}, 8),
    "ppm": ("PPM", {}, 0),
    "qoi": ("QOI", {}, 0),
    "webp lossless": ("WEBP", {"lossless": True}, 0),
    "webp": ("WEBP", {"quality": 95}, 12),
    "avif": ("AVIF", {"quality": 95}, 8),
    "jpeg": ("JPEG", {"quality": 95}, 14),
    "jpeg progressive": ("JPEG", {"quality": 95, "progressive": True}, 14),
    "jpeg 2000": ("JPEG2000", {}, 0),
    "jpeg 2000 stream": ("JPEG2000", {"no_jp2": True}, 0),
}


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def quadrants(width=64, height=48):
    """Four colours and a white dot off the centre: every turn, mirroring or swap differs."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :] = RED, GREEN
    pixels[height // 2 :, : width // 2], pixels[height // 2 :, width // 2 :] = BLUE, YELLOW
    pixels[height // 8 : height // 3, width // 8 : width // 4] = 255
    return Image.fromarray(pixels)


def away_from_edges(width=64, height=48, margin=3):
    """Where all pixels within `margin` have the same colour; codecs blur the rest."""
    pixels = np.asarray(quadrants(width, height), int)
    flat = np.ones((height, width), bool)
    for axis in (0, 1):
        for shift in range(-margin, margin + 1):
            flat &= (np.roll(pixels, shift, axis) == pixels).all(-1)
    return flat


def noise(side=40, seed=0):
    """A picture that no codec makes small, so that a cut loses something."""
    values = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(values)


def srgb_profile():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_profile():
    """An RGB profile whose first channel means green and whose second means red."""
    swapped = srgb_profile().replace(b"rXYZ", b"tmp!").replace(b"gXYZ", b"rXYZ")
    return swapped.replace(b"tmp!", b"gXYZ")


def cmyk_profile():
    """A CMYK profile of an odd press: cyan ink prints bright green, black ink black."""
    corners = []
    for node in range(16):  # cyan varies slowest, black fastest
        cyan, black = node & 8, node & 1
        corners += [0, 128, 128] if black else [224, 49, 209] if cyan else [255, 128, 128]
    identity = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix
    table += identity * 4 + bytes(corners) + identity * 3
    header = struct.pack(">I4sI4s4s4s12s4s", 144 + len(table), b"", 0x02400000, b"prtr", b"CMYK",
                         b"Lab ", bytes(12), b"acsp")  # fmt: skip
    header += bytes(28) + struct.pack(">3i", 63190, 65536, 54061)  # the D50 white
    return header.ljust(128, b"\0") + struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table
