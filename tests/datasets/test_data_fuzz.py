"""Proves that no bytes crash, hang or blow up the reading of metadata, captions and pictures."""

import contextlib
import json
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from picture_toys import CODECS, encode, quadrants, swapped_profile
from PIL import Image

from tinydiffusion.datasets.folder import FolderDataset, find_pictures
from tinydiffusion.pictures.captions import shown
from tinydiffusion.pictures.decode import UnusablePictureError, load_picture, quiet
from tinydiffusion.pictures.metadata import MAX_LINE
from tinydiffusion.pictures.scan import Found, scan
from tinydiffusion.pictures.views import view_of

fuzz = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))  # lone surrogates, too
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=5,
)
ODD_NAMES = ["a.png", "./a.png", "A.PNG", "../a.png", "/a.png", "~/a.png", "b\\a.png", "C:/a.png"]
ODD_NAMES += ["http://host/a.png", "a.png\0", "a\ud800.png", "x" * 300]
NAMES = st.sampled_from(ODD_NAMES) | ANY_TEXT
ROWS = st.fixed_dictionaries({}, optional={"file_name": NAMES | ANY_JSON, "text": ANY_JSON})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "a.png")
    return folder


def outcome(folder, name, content):
    """The captions of the set with one file of these bytes, or the one line of its ValueError."""
    (folder / name).write_bytes(content)
    try:
        dataset = FolderDataset(path=folder, size=8)
    except ValueError as error:
        message = str(error)
    else:
        return [dataset[i]["caption"] for i in range(len(dataset))]
    finally:
        (folder / name).unlink()
    assert message.isprintable()
    return message


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "a.txt"])
@fuzz
@given(content=st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_any_bytes(folder, name, content):
    result = outcome(folder, name, content)
    if name == "a.txt" and isinstance(result, list):
        (caption,) = result
        assert caption == caption.strip() != ""
        assert set(caption) <= {*content.decode(), " "}
    elif name != "a.txt":
        assert isinstance(result, str)  # such bytes are never rows
        assert name in result


@fuzz
@given(rows=st.lists(ROWS | ANY_JSON, min_size=1, max_size=4))
def test_any_json_lines(folder, rows):
    lines = [json.dumps(row) for row in rows]
    result = outcome(folder, "metadata.jsonl", "\n".join(lines).encode())
    if isinstance(result, list):
        texts = result[0] if isinstance(result[0], list) else result
        assert all(text.strip() and text.encode() for text in texts)
    else:
        assert "metadata.jsonl:" in result or "cannot be used" in result


@fuzz
@given(rows=st.lists(st.lists(NAMES | st.text(max_size=9), min_size=1, max_size=3), max_size=4))
def test_any_table(folder, rows):
    table = "".join(",".join(f'"{cell}"' for cell in row) + "\n" for row in rows)
    content = ("file_name,text\n" + table).encode("utf-8", "surrogatepass")
    result = outcome(folder, "metadata.csv", content)
    assert isinstance(result, list) or "metadata.csv" in result or "cannot be used" in result


@fuzz
@given(caption=ANY_TEXT | st.lists(ANY_TEXT, max_size=3))
def test_any_caption(caption):
    picture = encode(Image.new("RGB", (8, 8)))
    result = scan([Found("a", picture, caption)], view_of(8))
    for sample in result.samples:
        texts = [sample.caption] if isinstance(sample.caption, str) else sample.caption
        assert all(text == text.strip() != "" for text in texts)
        assert all(text.encode() for text in texts)
    assert len(result.samples) + len(result.skipped) == 1


@fuzz
@given(text=ANY_TEXT)
def test_what_is_shown_fits_any_terminal(text):
    line = shown(text)
    assert line.isprintable() or line == ""
    line.encode()


@pytest.mark.parametrize(
    "content",
    [b"{" * 1_000_000, b'{"a":' * 100_000, b"9" * 10_000, b'{"file_name": "a.png", "text": "' * 9],
    ids=["open", "nested", "digits", "quotes"],
)
def test_long_and_deep_json_is_an_error_of_its_line(folder, content):
    assert "metadata.jsonl:1: " in outcome(folder, "metadata.jsonl", content)


def test_a_huge_line_is_not_read_to_its_end(folder):
    with (folder / "metadata.jsonl").open("wb") as file:
        file.truncate(20 * MAX_LINE)  # a hole of more than a gigabyte
    with pytest.raises(ValueError, match=r"metadata\.jsonl:1: a line over"):
        find_pictures(folder)
    (folder / "metadata.jsonl").unlink()


# ---- pictures --------------------------------------------------------------------------------


def samples():
    exif = Image.Exif()
    exif[0x0112] = 6
    small = quadrants(32, 24)
    files = {name: encode(small, kind, **options) for name, (kind, options, _) in CODECS.items()}
    files["png with metadata"] = encode(small, exif=exif, icc_profile=swapped_profile())
    files["jpeg with metadata"] = encode(small, "JPEG", exif=exif, icc_profile=swapped_profile())
    files["cmyk"] = encode(small.convert("CMYK"), "TIFF", compression="tiff_lzw")
    files["fax"] = encode(small.convert("1"), "TIFF", compression="group4")
    files["wide"] = encode(small.convert("L").convert("F"), "TIFF")
    files["frames"] = encode(small, "GIF", save_all=True, append_images=[small.rotate(180)])
    files["text"] = b"P3 4 4 255\n" + b"1 2 3 " * 16
    return files


SAMPLES = samples()


@fuzz
@given(data=st.data())
@pytest.mark.parametrize("name", SAMPLES)
def test_a_damaged_picture_loads_or_is_refused(name, data):
    content = bytearray(SAMPLES[name])
    places = st.integers(0, min(64, len(content)) - 1) | st.integers(0, len(content) - 1)
    edits = data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6))
    for place, byte in edits:
        content[place] = byte
    cut = data.draw(st.none() | st.integers(0, len(content)))
    with quiet(), contextlib.suppress(UnusablePictureError):
        assert load_picture(bytes(content[:cut]), (8, 8)).image.mode == "RGB"


BOUNDED = """
import random, resource, signal, sys
from pathlib import Path
from tinydiffusion.pictures.decode import UnusablePictureError, load_picture, quiet

def too_slow(number, frame):
    raise SystemExit(f"over 2 s: {name} {bytes(content).hex()}")

signal.signal(signal.SIGVTALRM, too_slow)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
random.seed(int(sys.argv[2]))
files = sorted(Path(sys.argv[1]).iterdir())
loaded = refused = 0
with quiet():
    for _ in range(int(sys.argv[3])):
        name = random.choice(files)
        content = bytearray(name.read_bytes())
        for _ in range(random.randint(1, 6)):
            content[random.randrange(min(64, len(content)))] = random.choice([0, 1, 127, 255])
        signal.setitimer(signal.ITIMER_VIRTUAL, 2)
        try:
            load_picture(bytes(content), (8, 8))
            loaded += 1
        except UnusablePictureError:
            refused += 1
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
print(loaded, refused, peak)
"""


def test_forged_headers_cost_neither_minutes_nor_gigabytes(tmp_path):
    for name, content in SAMPLES.items():
        (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-W", "error", "-c", BOUNDED, str(tmp_path), "0", "3000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-500:]
    loaded, refused, megabytes = map(int, done.stdout.split())
    assert min(loaded, refused) > 150
    assert megabytes < 900  # the largest picture allowed is 268 as RGB, and as much before
    assert "Warning" not in done.stderr
    assert len(done.stderr.splitlines()) < refused  # libtiff's own line on a file at most
