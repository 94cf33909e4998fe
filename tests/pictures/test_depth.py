"""Proves that files of more than 8 bits come to the light that they mean, and guesses are said."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tinydiffusion.datasets.folder import FolderDataset
from tinydiffusion.pictures.decode import load_picture
from tinydiffusion.pictures.depth import about_depth
from tinydiffusion.pictures.scan import Found, scan
from tinydiffusion.pictures.views import view_of

SIDE = 32


def ramp(white, channels=1):
    """From 0 to `white`, left to right."""
    row = np.linspace(0, white, SIDE).round().astype(np.uint16)
    return np.broadcast_to(row[None, :, None], (SIDE, SIDE, channels)).copy()


def png(values):
    """16-bit PNG of 1 to 4 channels, which Pillow writes of grey only."""
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2]]

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(values, order="<", deflate=False):
    """16-bit TIFF of one strip."""
    height, width, channels = values.shape
    pixels = values.astype(f"{order}u2").tobytes()
    pixels = zlib.compress(pixels) if deflate else pixels
    bits = struct.pack(f"{order}{channels}H", *[16] * channels)
    at = 8 + len(pixels)
    tags = [(256, 4, 1, width), (257, 4, 1, height)]
    tags += [(258, 3, channels, at)] if channels > 2 else [(258, 3, 1, 16)]
    tags += [
        (259, 3, 1, 8 if deflate else 1),
        (262, 3, 1, 2 if channels > 2 else 1),
        (273, 4, 1, 8),
    ]
    tags += [(277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(pixels))]
    if channels == 4:
        tags.append((338, 3, 1, 2))
    entries = b""
    for tag, kind, count, value in tags:
        form = "HH" if kind == 3 and count == 1 else "I"
        packed = struct.pack(f"{order}{form}", *((value, 0) if form == "HH" else (value,)))
        entries += struct.pack(f"{order}HHI", tag, kind, count) + packed
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    start = at + len(bits) + len(bits) % 2
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    return head + pixels + bits.ljust(start - at, b"\0") + directory


def netpbm(values, declared=65535):
    kind = b"P6" if values.shape[2] == 3 else b"P5"
    return kind + f" {SIDE} {SIDE} {declared}\n".encode() + values.astype(">u2").tobytes()


FILES = {
    "grey PNG": lambda white: png(ramp(white)),
    "grey PNG with opacity": lambda white: png(np.dstack([ramp(white), ramp(0) + 65535])),
    "RGB PNG": lambda white: png(ramp(white, 3)),
    "RGBA PNG": lambda white: png(np.dstack([ramp(white, 3), ramp(0) + 65535])),
    "grey TIFF": lambda white: tiff(ramp(white)),
    "RGB TIFF": lambda white: tiff(ramp(white, 3)),
    "RGB TIFF, big-endian": lambda white: tiff(ramp(white, 3), ">"),
    "RGB TIFF, deflated": lambda white: tiff(ramp(white, 3), deflate=True),
    "RGBA TIFF": lambda white: tiff(np.dstack([ramp(white, 3), ramp(0) + 65535])),
    "PGM": lambda white: netpbm(ramp(white)),
    "PPM": lambda white: netpbm(ramp(white, 3)),
}
KINDS = pytest.mark.parametrize("make", FILES.values(), ids=FILES)


def levels(picture):
    """Of the first row, after checking that the picture is grey."""
    pixels = np.asarray(picture.image)
    assert np.ptp(pixels.astype(int), axis=2).max() == 0
    return pixels[0, :, 0].astype(int)


@KINDS
@pytest.mark.parametrize("white", [1023, 4095, 16383, 65535])
def test_max_value_is_white_in_every_file(make, white):
    picture = load_picture(make(white), max_value=white)
    wanted = ramp(white)[0, :, 0] * (255.0 / white)
    np.testing.assert_allclose(levels(picture), wanted, atol=1 if white == 65535 else 0.51)
    assert not any(map(about_depth, picture.notes))


@KINDS
def test_twelve_bits_are_noticed_scaled_and_said(make):
    picture = load_picture(make(4095))
    assert levels(picture)[0] == 0
    assert levels(picture)[-1] == 255
    (note,) = filter(about_depth, picture.notes)
    assert "brightened; max_value: 65535 leaves it dark" in note


@KINDS
@pytest.mark.parametrize(
    ("white", "brightest", "words"),
    [(1023, 64, "above 1023"), (16383, 64, "max_value: 16383 brightens it"), (65535, 255, None)],
)
def test_other_ranges(make, white, brightest, words):
    """10 bits come out as 12 bits would, 14 bits are left alone: both with what to do."""
    picture = load_picture(make(white))
    assert abs(levels(picture)[-1] - brightest) <= 1
    notes = list(filter(about_depth, picture.notes))
    assert [words in note for note in notes] == ([] if words is None else [True])


@KINDS
def test_the_full_range_keeps_a_dark_picture_dark(make):
    picture = load_picture(make(4095), max_value=65535)
    assert levels(picture)[-1] in (15, 16)
    assert not any(map(about_depth, picture.notes))


@KINDS
def test_a_black_picture_is_black_without_a_word(make):
    picture = load_picture(make(0))
    assert levels(picture).max() == 0
    assert not any(map(about_depth, picture.notes))


@pytest.mark.parametrize("channels", [1, 3])
def test_what_a_file_declares_goes_before_the_option(channels):
    picture = load_picture(netpbm(ramp(4095, channels), declared=4095), max_value=1023)
    np.testing.assert_allclose(levels(picture), ramp(4095)[0, :, 0] * (255.0 / 4095), atol=0.51)


def test_values_above_max_value_are_white_and_said():
    picture = load_picture(png(ramp(4095)), max_value=1023)
    assert (levels(picture)[-8:] == 255).all()
    assert "values above max_value=1023 made white" in picture.notes


def test_a_transparent_colour_and_opacity_survive():
    values = np.dstack([ramp(4095, 3), np.where(ramp(1) > 0, 65535, 0)[..., :1].astype(np.uint16)])
    assert levels(load_picture(png(values)))[0] == 255  # transparent, on white


def test_8_bit_pictures_are_left_alone():
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(file, "PNG")
    picture = load_picture(file.getvalue(), max_value=255)
    assert picture.image.getpixel((0, 0)) == (9, 9, 9)
    assert picture.notes == []


def test_the_cache_knows_the_option():
    found = [Found("a", png(ramp(4095)), "a ramp")]
    brightest = [
        int(scan(found, view_of(SIDE, max_value=white)).pixels(0).max())
        for white in (None, 65535, 8191, None)
    ]
    assert brightest == [255, 16, 127, 255]


def test_a_data_set_warns_of_what_it_guessed(tmp_path):
    (tmp_path / "a.png").write_bytes(png(ramp(4095, 3)))
    (tmp_path / "a.txt").write_text("a ramp")
    with pytest.warns(UserWarning, match="1 of 1 pictures: 16-bit file without a value above 4095"):
        FolderDataset(path=tmp_path, size=SIDE)


@pytest.mark.parametrize("value", [0, 254, 2**40])
def test_max_value_out_of_range(value):
    with pytest.raises(ValueError, match="max_value must be in"):
        view_of(8, max_value=value)
