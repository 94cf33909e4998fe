"""Hand-made tar archives for the tests of the shards, with headers that may say anything."""

import io
import tarfile

import pytest
from PIL import Image

from tinydiffusion.datasets.tar import TarDataset
from tinydiffusion.shards.headers import BLOCK, list_members

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def picture(color=(10, 20, 30), size=(8, 8), kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, kind)
    return file.getvalue()


def info(name, size=0, **fields):
    member = tarfile.TarInfo(name)
    member.size = size
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def header(name, size=0, **fields):
    return info(name, size, **fields).tobuf(tarfile.GNU_FORMAT)


def entry(name, content, **fields):
    """A member's header and data as they lie in the archive, whatever they say."""
    return header(name, len(content), **fields) + content + bytes(-len(content) % BLOCK)


def sample(key, color=(10, 20, 30), caption="a picture"):
    return entry(f"{key}.png", picture(color)) + entry(f"{key}.txt", caption.encode())


def pax_record(key, value):
    """One record, its length counted until it fits."""
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + len(str(len(body) + len(str(len(body)))))
    return str(length).encode() + body


def pax(**records):
    content = b"".join(pax_record(key.encode(), value) for key, value in records.items())
    return entry("pax", content, type=tarfile.XHDTYPE)


END = bytes(2 * BLOCK)
GOOD = b"".join(sample(key) for key in ("good1", "good2", "good3"))


def write(path, *parts, end=END):
    path.write_bytes(b"".join(parts) + end)
    return path


def load(path, size=8, **options):
    return TarDataset(path=path, size=size, **options)


def ids(dataset):
    return [dataset[i]["id"] for i in range(len(dataset))]


def captions(dataset):
    return [dataset[i]["caption"] for i in range(len(dataset))]


def members(data):
    return list(list_members(io.BytesIO(data)))


def skips(tmp_path, *parts, kept=(), end=END):
    """What is skipped of a shard of three good samples and these parts, of which `kept` remain."""
    dataset = load(write(tmp_path / "s.tar", GOOD, *parts, end=end))
    assert ids(dataset) == [f"s.tar/{key}" for key in ("good1", "good2", "good3", *kept)]
    return dict(dataset.skipped)


def fails(path, message, **options):
    with pytest.raises(ValueError, match=message) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)
