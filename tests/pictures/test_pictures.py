"""Proves that every colour mode becomes the RGB pixels it means, and that bad files are refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, features

from tinydiffusion.pictures.decode import (
    ORIENTATION_TAG,
    UnusablePictureError,
    center_crop,
    load_picture,
    quiet,
    resize,
)


@pytest.fixture(autouse=True)
def no_warnings_about_metadata():
    with quiet():
        yield


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixel(content, at=(0, 0)):
    image = load_picture(content).image
    assert image.mode == "RGB"
    return image.getpixel(at)


def photo(width=64, height=48):
    """A picture without any symmetry, smooth enough for JPEG."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [255 * x / width, 255 * y / height, 255 * (x + y) / (width + height)]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("LA", (100, 255), (100, 100, 100)),
        ("LA", (100, 0), (255, 255, 255)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
    ],
)
def test_plain_modes_and_alpha_on_white(mode, color, expected):
    assert pixel(encode(Image.new(mode, (2, 2), color))) == expected


def palette_picture(mode="P"):
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 30, 40, 50])
    image.putdata([0, 1])
    return image


def test_palette_with_and_without_transparency():
    assert pixel(encode(palette_picture())) == (200, 10, 20)
    whole = encode(palette_picture(), transparency=0)
    assert pixel(whole) == (255, 255, 255)
    assert pixel(whole, (1, 0)) == (30, 40, 50)
    half = encode(palette_picture(), transparency=bytes([255, 0]))
    assert pixel(half) == (200, 10, 20)
    assert pixel(half, (1, 0)) == (255, 255, 255)
    assert pixel(encode(palette_picture(), "GIF", transparency=1), (1, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["PA", "RGBa", "HSV", "YCbCr"])
def test_modes_that_only_some_files_have(mode, monkeypatch):
    """No writer makes these, so the decoder is handed the decoded picture."""
    from tinydiffusion.pictures import decode

    source = Image.new("RGBA", (2, 2), (100, 100, 100, 255))
    if mode == "PA":
        image = Image.new("P", (2, 2))
        image.putpalette([100, 100, 100])
        image = image.convert("PA")
    else:
        image = source.convert(mode) if mode == "RGBa" else source.convert("RGB").convert(mode)
    assert image.mode == mode
    monkeypatch.setattr(decode.Image, "open", lambda file, formats: image)
    assert pixel(b"") == (100, 100, 100)


def test_colour_key_of_rgb_and_grey():
    assert pixel(encode(Image.new("RGB", (1, 1), (9, 8, 7)), transparency=(9, 8, 7))) == (255,) * 3
    assert pixel(encode(Image.new("L", (1, 1), 9), transparency=9)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_full_range(kind):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    content = encode(Image.fromarray(values), kind)
    assert [pixel(content, (x, 0))[0] for x in range(4)] == [0, 1, 128, 255]


def test_16_bit_big_endian_tiff_and_pgm():
    values = np.array([[0, 257 * 200, 65535]], dtype=">u2")
    pgm = b"P5 3 1 65535\n" + values.tobytes()
    assert [pixel(pgm, (x, 0))[0] for x in range(3)] == [0, 200, 255]
    image = Image.frombytes("I;16B", (3, 1), values.tobytes())
    assert [pixel(encode(image, "TIFF"), (x, 0))[0] for x in range(3)] == [0, 200, 255]


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0, 100, 255], np.int32, [0, 100, 255]),
        ([0, 25700, 65535], np.int32, [0, 100, 255]),
        ([-1000, 0, 1000], np.int32, [0, 128, 255]),
        ([5_000_000, 5_000_000, 5_000_000], np.int32, [0, 0, 0]),
        ([0.0, 0.5, 1.0], np.float32, [0, 128, 255]),
        ([0.0, 100.0, 255.0], np.float32, [0, 100, 255]),
        ([0.0, 25700.0, 65535.0], np.float32, [0, 100, 255]),
        ([-1.0, 0.0, 1.0], np.float32, [0, 128, 255]),
    ],
)
def test_wide_grey_takes_the_smallest_range_that_holds_it(values, dtype, expected):
    content = encode(Image.fromarray(np.array([values], dtype=dtype)), "TIFF")
    assert [pixel(content, (x, 0))[0] for x in range(3)] == expected


def test_float_that_is_not_finite_is_refused():
    content = encode(Image.fromarray(np.array([[0, np.nan]], dtype=np.float32)), "TIFF")
    with pytest.raises(UnusablePictureError, match="not finite"):
        load_picture(content)


def test_cmyk_jpeg_and_tiff():
    paper_and_red = Image.new("CMYK", (16, 8), (0, 0, 0, 0))
    paper_and_red.paste((0, 255, 255, 0), (8, 0, 16, 8))
    for kind in ("JPEG", "TIFF"):  # JPEG: Adobe's inverted values
        content = encode(paper_and_red, kind)
        np.testing.assert_allclose(pixel(content), (255, 255, 255), atol=2)
        np.testing.assert_allclose(pixel(content, (15, 0)), (255, 0, 0), atol=2)


def test_ycbcr_jpeg_is_near_its_source():
    loaded = np.asarray(load_picture(encode(photo(), "JPEG", quality=95)).image, dtype=float)
    np.testing.assert_allclose(loaded, np.asarray(photo()), atol=8)


def test_lab_tiff():
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    for color in [(0, 0, 0), (255, 255, 255), (119, 119, 119), (200, 60, 40)]:
        image = ImageCms.profileToProfile(
            Image.new("RGB", (2, 2), color), srgb, lab, outputMode="LAB"
        )
        np.testing.assert_allclose(pixel(encode(image, "TIFF")), color, atol=3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_the_same_picture(orientation, kind):
    undo = {6: 8, 8: 6}.get(orientation, orientation)
    turned = photo()
    turned.getexif()[ORIENTATION_TAG] = undo
    turned = ImageOps.exif_transpose(turned)
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    loaded = load_picture(encode(turned, kind, exif=exif, **options)).image
    np.testing.assert_array_equal(loaded, photo())


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"]
)
def test_broken_exif_is_ignored(exif):
    assert load_picture(encode(photo(), "JPEG", exif=exif)).image.size == (64, 48)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animated_gives_the_first_frame(kind):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(content)) as image:
        assert image.n_frames == 3
    assert pixel(content) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files_are_refused(kind, share):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    content = encode(Image.fromarray(noise), kind)
    with pytest.raises(UnusablePictureError, match="unreadable"):
        load_picture(content[: int(len(content) * share)])


@pytest.mark.parametrize(
    "content", [b"", b"not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\0" * 99]
)
def test_what_is_no_picture_is_refused(content):
    with pytest.raises(UnusablePictureError, match="not a picture"):
        load_picture(content)


def png_header(width, height):
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (20_000, 20_000)])
def test_decompression_bombs_are_refused_from_the_header(width, height):
    with pytest.raises(UnusablePictureError, match="too many pixels"):
        load_picture(png_header(width, height))


def test_damaged_files_fail_in_the_one_expected_way():
    """Random damage gives a picture or UnusablePictureError, never another exception."""
    rng = np.random.default_rng(0)
    refused = 0
    for kind in ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"]:
        content = encode(photo(16, 12), kind)
        for _ in range(60):
            damaged = np.frombuffer(content, np.uint8).copy()
            damaged[rng.integers(0, min(len(damaged), 300), 6)] = rng.integers(0, 256, 6)
            try:
                assert load_picture(damaged.tobytes()).image.mode == "RGB"
            except UnusablePictureError:
                refused += 1
    assert refused > 50


def test_missing_files_and_folders_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.png", tmp_path / ("x" * 300)):
        with pytest.raises(UnusablePictureError):
            load_picture(path)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1, 1), (8, 8)), ((1, 400), (8, 3200)), ((400, 1), (3200, 8)), ((33, 100), (8, 24))],
)
def test_resize_keeps_proportions(size, expected):
    resized = resize(Image.new("RGB", size, (5, 6, 7)), (8, 8), "crop")
    assert resized.size == expected
    assert np.asarray(resized).reshape(-1, 3).std(0).max() == 0


def test_resize_to_its_own_size_changes_nothing():
    np.testing.assert_array_equal(resize(photo(), (48, 48), "crop"), photo())


def test_resize_is_antialiased():
    """A fine checkerboard becomes even grey; picking single pixels would give black or white."""
    board = np.indices((256, 256)).sum(0) % 2 * 255
    resized = np.asarray(resize(Image.fromarray(board.astype(np.uint8)), (16, 16), "crop"))
    np.testing.assert_allclose(resized.astype(float), 127.5, atol=3)


def test_center_crop_takes_the_middle():
    cropped = center_crop(photo(64, 48), (48, 48))
    np.testing.assert_array_equal(cropped, np.asarray(photo())[:, 8:56])


def test_draft_decoding_of_a_large_jpeg_looks_the_same():
    content = encode(photo(1024, 768), "JPEG", quality=95)
    drafted = load_picture(content, size=(32, 32))
    assert (drafted.width, drafted.height) == (1024, 768)
    whole = resize(load_picture(content).image, (32, 32), "crop")
    difference = np.asarray(drafted.image, float) - np.asarray(whole, float)
    assert np.abs(difference).max() <= 3
