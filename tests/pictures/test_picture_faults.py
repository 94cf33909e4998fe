"""Proves that every kind of picture gives the right pixels, or is refused with its reason."""

import os
import resource
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from picture_toys import (
    CODECS,
    GREEN,
    RED,
    away_from_edges,
    cmyk_profile,
    encode,
    noise,
    quadrants,
    srgb_profile,
    swapped_profile,
)
from PIL import Image, PngImagePlugin

from tinydiffusion.pictures import decode
from tinydiffusion.pictures.decode import UnusablePictureError, load_picture, quiet
from tinydiffusion.pictures.scan import Found, scan
from tinydiffusion.pictures.views import view_of

INK = "converted to sRGB by the ICC profile"


@pytest.fixture(autouse=True)
def no_warnings_about_metadata():
    with quiet():
        yield


def check_pixels(content, expected=None, tolerance=0):
    """Loads the content and compares it with the quadrants, or with another picture."""
    picture = load_picture(content)
    expected = quadrants() if expected is None else expected
    assert (picture.image.mode, picture.image.size) == ("RGB", expected.size)
    error = np.abs(np.asarray(picture.image, int) - np.asarray(expected, int))
    assert error[away_from_edges()].max() <= tolerance
    return picture


# ---- codecs and modes ------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_keeps_place_and_colour(codec):
    kind, options, tolerance = CODECS[codec]
    picture = check_pixels(encode(quadrants(), kind, **options), tolerance=tolerance)
    assert (picture.width, picture.height, picture.notes) == (64, 48, [])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_every_codec_refuses_cut_files(codec, share):
    kind, options, _ = CODECS[codec]
    content = encode(noise(), kind, **options)
    with pytest.raises(UnusablePictureError, match="unreadable"):
        load_picture(content[: int(len(content) * share)])


def test_palette_opaque_alpha_and_one_bit():
    palette = quadrants().quantize(8, dither=Image.Dither.NONE)
    check_pixels(encode(palette, "PNG"), palette.convert("RGB"))
    check_pixels(encode(palette, "TIFF"), palette.convert("RGB"))
    check_pixels(encode(quadrants().convert("RGBA"), "PNG"))
    for mode in ("1", "L", "LA"):
        grey = quadrants().convert("L").convert(mode)
        check_pixels(encode(grey, "PNG"), grey.convert("RGB"))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_what_is_transparent_is_white(kind):
    image = quadrants().convert("RGBA")
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, 32, 24))  # the red quadrant and its dot
    image.putalpha(alpha)
    expected = quadrants()
    expected.paste((255, 255, 255), (0, 0, 32, 24))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert check_pixels(encode(image, kind, **options), expected).notes == [
        "transparency laid on white"
    ]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled(kind):
    grey = quadrants().convert("L")
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    picture = check_pixels(encode(wide, kind), grey.convert("RGB"))
    assert picture.notes == ["grey of more than 8 bits scaled to 8"]


def test_16_bit_grey_with_a_transparent_value():
    grey = Image.fromarray(np.array([[300, 65535, 0]], np.uint16))
    image = load_picture(encode(grey, "PNG", transparency=300)).image
    assert [image.getpixel((x, 0))[0] for x in range(3)] == [255, 255, 0]


def test_floats_of_a_portable_float_map():
    content = b"Pf\n2 1\n-1.0\n" + struct.pack("<2f", 0.0, 1.0)
    image = load_picture(content).image
    assert [image.getpixel((x, 0)) for x in range(2)] == [(0, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_goes_by_its_profile(kind):
    inks = Image.new("CMYK", (48, 16), (0, 0, 0, 0))
    inks.paste((255, 0, 0, 0), (16, 0, 32, 16))
    inks.paste((0, 0, 0, 255), (32, 0, 48, 16))
    options = {"quality": 95} if kind == "JPEG" else {}
    plain = load_picture(encode(inks, kind, **options))
    assert plain.notes == ["CMYK without an ICC profile"]
    np.testing.assert_allclose(plain.image.getpixel((24, 8)), (0, 255, 255), atol=4)
    printed = load_picture(encode(inks, kind, icc_profile=cmyk_profile(), **options))
    assert printed.notes == [INK]
    for place, colour in ((8, (255, 255, 255)), (24, (0, 255, 0)), (40, (0, 0, 0))):
        np.testing.assert_allclose(printed.image.getpixel((place, 8)), colour, atol=16)


# ---- colour profiles -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_rgb_goes_by_its_profile(kind):
    red, green, blue = quadrants().split()
    swapped = Image.merge("RGB", (green, red, blue))
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(kind, {})
    content = encode(swapped, kind, icc_profile=swapped_profile(), **options)
    assert check_pixels(content, tolerance=14 if kind == "JPEG" else 2).notes == [INK]


def test_profile_and_transparency_together():
    red, green, blue = quadrants().split()
    alpha = Image.new("L", (64, 48), 255)
    alpha.paste(0, (32, 0, 64, 24))
    image = Image.merge("RGBA", (green, red, blue, alpha))
    expected = quadrants()
    expected.paste((255, 255, 255), (32, 0, 64, 24))
    picture = check_pixels(encode(image, icc_profile=swapped_profile()), expected, tolerance=2)
    assert picture.notes == [INK, "transparency laid on white"]


def test_srgb_changes_nothing():
    assert check_pixels(encode(quadrants(), icc_profile=srgb_profile())).notes == []


@pytest.mark.parametrize(
    "profile",
    [b"no profile", swapped_profile()[:200], cmyk_profile()],
    ids=["junk", "cut", "unfit"],
)
def test_a_broken_or_unfit_profile_is_ignored_and_noted(profile):
    picture = check_pixels(encode(quadrants(), "TIFF", icc_profile=profile))
    assert picture.notes == ["broken or unfit ICC profile ignored"]


def test_an_odd_gamma_is_noted():
    content = with_chunk(encode(quadrants()), b"gAMA", struct.pack(">I", 100_000))
    assert check_pixels(content).notes == ["gamma of the file ignored"]


# ---- EXIF, frames ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_picture_upright(orientation, kind):
    undo = {o: t for o, t in decode.UPRIGHT.items() if o not in (6, 8)}
    undo |= {6: decode.UPRIGHT[8], 8: decode.UPRIGHT[6]}
    stored = quadrants() if orientation == 1 else quadrants().transpose(undo[orientation])
    exif = Image.Exif()
    exif[decode.ORIENTATION_TAG] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95}
    picture = check_pixels(encode(stored, kind, exif=exif, **options), tolerance=14)
    assert (picture.width, picture.height) == (64, 48)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_broken_exif_is_noted(exif):
    picture = check_pixels(encode(quadrants(), "JPEG", quality=95, exif=exif), tolerance=14)
    assert picture.notes == ["broken EXIF ignored"]


def test_an_orientation_that_does_not_exist_is_noted():
    exif = Image.Exif()
    exif[decode.ORIENTATION_TAG] = 9
    assert check_pixels(encode(quadrants(), exif=exif)).notes == ["broken EXIF ignored"]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
def test_of_several_frames_the_first_counts(kind):
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95}
    others = [noise(48).resize((64, 48)), noise(48, seed=1).resize((64, 48))]
    content = encode(quadrants(), kind, save_all=True, append_images=others, **options)
    picture = check_pixels(content, tolerance=14)
    assert picture.notes == ["of several frames only the first is used"]


# ---- damage ----------------------------------------------------------------------------------


def chunk(kind, data, crc=None):
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def with_chunk(png, kind, data, crc=None):
    """The PNG with a chunk after its header."""
    return png[:33] + chunk(kind, data, crc) + png[33:]


def test_a_png_with_a_wrong_checksum_is_refused():
    good = encode(quadrants())
    start = good.index(b"IDAT")
    length = int.from_bytes(good[start - 4 : start], "big")
    for place in (29, start + 4 + length):  # of the header, of the pixels
        bad = bytearray(good)
        bad[place] ^= 1
        with pytest.raises(UnusablePictureError, match="unreadable: "):
            load_picture(bytes(bad))
    with pytest.raises(UnusablePictureError, match="unreadable: "):
        load_picture(with_chunk(good, b"IDAT", b"", crc=1))


def test_text_that_unpacks_to_gigabytes_is_not_unpacked():
    bomb = PngImagePlugin.PngInfo()
    bomb.add_text("comment", "x" * 3_000_000, zip=True)
    with pytest.raises(UnusablePictureError, match="unreadable: "):
        load_picture(encode(quadrants(), pnginfo=bomb))


def jpeg_of(width, height):
    content = encode(quadrants(), "JPEG")
    place = content.index(b"\xff\xc0") + 5
    return content[:place] + struct.pack(">HH", height, width) + content[place + 4 :]


def bmp_of(width, height):
    content = encode(quadrants(), "BMP")
    return content[:18] + struct.pack("<ii", width, height) + content[26:]


def gif_of(width, height):
    content = encode(quadrants(), "GIF")
    return content[:6] + struct.pack("<HH", width, height) + content[10:]


def png_of(width, height):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def webp_of(width, height):
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4)
    body += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", len(body)) + body


HEADERS = {
    "jpeg": jpeg_of,
    "bmp": bmp_of,
    "gif": gif_of,
    "png": png_of,
    "ppm": lambda w, h: b"P6 %d %d 255\n" % (w, h),
    "qoi": lambda w, h: b"qoif" + struct.pack(">IIBB", w, h, 3, 0),
    "webp": webp_of,
}


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("side", [9_500, 30_000])
def test_bombs_are_refused_by_their_header(kind, side):
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    reason = "unreadable|too many" if kind == "webp" else "too many pixels: over 89 million"
    with pytest.raises(UnusablePictureError, match=reason):
        load_picture(HEADERS[kind](side, side))
    assert time.process_time() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


@pytest.mark.timeout(20)
def test_files_that_are_none(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to("nowhere.png")
    for name in ("pipe.png", "folder.png", "nowhere.png"):
        with pytest.raises(UnusablePictureError, match=r"^missing or not a file$"):
            load_picture(tmp_path / name)
    with pytest.raises(UnusablePictureError, match=r"^broken link: to nowhere\.png$"):
        load_picture(tmp_path / "dangling.png")
    (tmp_path / "closed.png").write_bytes(encode(quadrants()))

    def refuse(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)  # root may read everything
    with pytest.raises(UnusablePictureError, match=r"^unreadable: Permission denied$"):
        load_picture(tmp_path / "closed.png")


def test_files_over_the_cap_are_not_read(tmp_path):
    with (tmp_path / "huge.bmp").open("wb") as file:
        file.write(encode(quadrants(), "BMP"))
        file.truncate(decode.MAX_BYTES + 1)  # a hole
    with pytest.raises(UnusablePictureError, match="too large: over 1 GiB"):
        load_picture(tmp_path / "huge.bmp")


# ---- shapes and memory -----------------------------------------------------------------------


@pytest.mark.parametrize("crop", ["center", "random"])
def test_thin_pictures(crop):
    pictures = [
        Found("dot", encode(Image.new("RGB", (1, 1), RED)), "a dot"),
        Found("line", encode(Image.new("RGB", (1, 4000), GREEN)), "a line"),
    ]
    result = scan(pictures, view_of(1, crop=crop))
    assert [(s.width, s.height) for s in result.samples] == [(1, 1), (1, 4000)]
    assert result.pixels(0).flatten().tolist() == list(RED)
    assert result.pixels(1)[:, 0, 0].tolist() == list(GREEN)
    assert scan(pictures, view_of(2, crop=crop)).skipped == [
        ("dot", "smaller than size=2: 1x1"),
        ("line", "smaller than size=2: 1x4000"),
    ]


def test_big_pictures_are_decoded_one_at_a_time(monkeypatch):
    pictures = [Found(str(i), encode(noise(24, seed=i)), "noise") for i in range(8)]
    most = {}
    for big in (10_000, 10):
        together, lock = [0], threading.Lock()
        seen = []

        def slow(image, together=together, lock=lock, seen=seen):
            with lock:
                together[0] += 1
                seen.append(together[0])
            time.sleep(0.02)
            with lock:
                together[0] -= 1
            return image, []

        monkeypatch.setattr(decode, "BIG", big)
        monkeypatch.setattr(decode, "to_srgb", slow)
        monkeypatch.setenv("TINYDIFFUSION_CACHE", os.environ["TINYDIFFUSION_CACHE"] + str(big))
        assert len(scan(pictures, view_of(8), workers=5).samples) == 8
        most[big] = max(seen)
    assert most[10] == 1
    assert most[10_000] > 1


PEAK = """
import resource, sys
from pathlib import Path
from tinydiffusion.pictures.decode import load_picture
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_picture(Path(sys.argv[1]), (32, 32))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize("mode", ["I;16", "RGBA", "F"])
def test_memory_stays_within_a_few_copies(tmp_path, mode):
    side = 3000
    values = np.full((side, side), 7, np.uint16 if mode == "I;16" else np.float32)
    image = Image.new("RGBA", (side, side), (1, 2, 3, 4)) if mode == "RGBA" else None
    (image or Image.fromarray(values)).save(tmp_path / "a.tif", compression="tiff_lzw")
    command = [sys.executable, "-c", PEAK, str(tmp_path / "a.tif")]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    in_between = 60e6  # strips, whatever the size
    assert peak < side * side * 13 + in_between
