"""Proves that the tar reader agrees with `tarfile`, and that no archive does harm."""

import io
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tar_toys import (
    END,
    FORMATS,
    GOOD,
    entry,
    fails,
    header,
    info,
    load,
    members,
    pax,
    pax_record,
    picture,
    sample,
    skips,
    write,
)

from tinydiffusion.datasets import tar as tar_module
from tinydiffusion.shards import headers
from tinydiffusion.shards import members as shards_members
from tinydiffusion.shards.headers import BLOCK, Fault, Member, list_members

# ---- the reader against the reference ------------------------------------------------------------

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\\\0"), min_size=1, max_size=300)


@settings(max_examples=50, deadline=None)
@given(
    files=st.lists(st.tuples(NAMES, st.binary(max_size=1100)), max_size=6),
    kind=st.sampled_from(["gnu", "pax"]),
)
def test_members_equal_those_of_tarfile(files, kind):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=FORMATS[kind]) as writer:
        for name, content in files:
            writer.addfile(info(name, len(content)), io.BytesIO(content))
    found = list(list_members(archive))
    archive.seek(0)
    with tarfile.open(fileobj=archive) as reader:
        listed = [member for member in reader.getmembers() if member.isreg()]
    assert len(found) == len(listed)
    for ours, theirs in zip(found, listed, strict=True):
        if isinstance(ours, Member):
            assert (ours.offset, ours.size) == (theirs.offset_data, theirs.size)
            assert ours.name == str(Path(theirs.name))
        else:
            assert ours.reason.startswith("refused: its name")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=4 * BLOCK))
def test_random_bytes_end_in_faults(data):
    assert all(isinstance(entry, (Fault, Member)) for entry in members(data))


# ---- hostile members -------------------------------------------------------------------------

LINKS = {
    "symlink": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
    "hardlink": {"type": tarfile.LNKTYPE, "linkname": "good1.png"},
    "character device": {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5},
    "block device": {"type": tarfile.BLKTYPE},
    "fifo": {"type": tarfile.FIFOTYPE},
    "contiguous": {"type": tarfile.CONTTYPE},
}


@pytest.mark.parametrize("kind", LINKS)
def test_links_and_devices_are_refused(tmp_path, kind):
    skipped = skips(
        tmp_path, header("a.png", **LINKS[kind]), entry("a.txt", b"a"), sample("z"), kept="z"
    )
    assert "not a regular file" in skipped["s.tar/a.png"]
    assert skipped["s.tar/a"] == "a caption without a picture"
    assert len(skipped) == 2


HARMFUL_NAMES = [
    "../a.png",
    "b/../../a.png",
    "/etc/a.png",
    "//host/a.png",
    "C:a.png",
    "c:/a.png",
    "..\\a.png",
    "b\\a.png",
    "a\n.png",
    "a\x1b[2J.png",
    "a\0.png",
    "a\ud800.png",
    "",
    "b" * 1000 + ".png",
]


@pytest.mark.parametrize("name", HARMFUL_NAMES)
@pytest.mark.parametrize("how", ["pax", "gnu"])
def test_harmful_names_are_refused_however_they_are_given(tmp_path, name, how):
    encoded = name.encode("utf-8", "surrogatepass")
    if how == "pax":
        before = pax(path=encoded)
    else:
        before = entry("././@LongLink", encoded + b"\0", type=tarfile.GNUTYPE_LONGNAME)
    skipped = skips(tmp_path, before, entry("harmless.png", picture()), sample("z"), kept="z")
    assert [reason.partition(":")[0] for reason in skipped.values()] == ["refused"]
    assert all(path.isprintable() for path in skipped)


def test_harmful_names_of_plain_headers_are_refused(tmp_path):
    names = [name for name in HARMFUL_NAMES if 0 < len(name) < 100 and name[1:2] not in "\0\ud800"]
    parts = [entry(name, picture()) for name in names]
    write(tmp_path / "s.tar", GOOD, *(sample(f"z{i}") for i in range(20)), *parts)
    dataset = load(tmp_path / "s.tar")
    assert len(dataset) == 23
    assert len(dataset.skipped) == len(names) == 10


def test_a_device_hidden_behind_a_pax_size_does_not_shift_the_rest(tmp_path):
    skipped = skips(
        tmp_path, pax(size=b"9999"), header("a.png", **LINKS["fifo"]), sample("z"), kept="z"
    )
    assert list(skipped) == ["s.tar/a.png"]


def old_sparse(name, stored, real, maps):
    """An old GNU sparse member: `real` bytes by its header, with `maps` further blocks."""
    block = bytearray(header(name, len(stored), type=tarfile.GNUTYPE_SPARSE))
    block[482] = maps > 0
    block[483:495] = tarfile.itn(real, 12, tarfile.GNU_FORMAT)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    more = b"".join(bytes(504) + bytes([i < maps - 1]) + bytes(7) for i in range(maps))
    return bytes(block) + more + stored + bytes(-len(stored) % BLOCK)


def test_sparse_members_are_refused_whatever_their_size(tmp_path):
    tebibyte = 1 << 40
    skipped = skips(
        tmp_path,
        old_sparse("old.png", b"x", tebibyte, maps=0),
        old_sparse("mapped.png", b"x" * 600, tebibyte, maps=3),
        pax(**{"GNU.sparse.major": b"1", "GNU.sparse.realsize": str(tebibyte).encode()})
        + entry("new.png", b"1\n0\n1\n"),
        sample("y"),
        sample("z"),
        kept="yz",
    )
    assert skipped == {
        f"s.tar/{name}.png": "refused: a sparse file" for name in ("old", "mapped", "new")
    }


@pytest.mark.parametrize("size", [1 << 40, 1 << 87, 8**11 - 1])
def test_a_huge_size_in_a_small_file_ends_the_shard(tmp_path, size):
    skipped = skips(tmp_path, header("a.png", size))
    assert list(skipped) == ["s.tar"]
    assert skipped["s.tar"].startswith("shard cut: at byte ")


@pytest.mark.parametrize("before", [b"", pax(path=b"a.png")])
def test_a_negative_size_ends_the_shard(tmp_path, before):
    skipped = skips(tmp_path, before, header("a.png", -512))
    assert skipped["s.tar"].endswith("a size of -512")


@pytest.mark.parametrize(
    "content",
    [
        pax_record(b"size", b"-512"),
        pax_record(b"size", b"1e3"),
        pax_record(b"size", "٣".encode()),
        pax_record(b"size", b"9" * 5000),
        b"0 path=a.png\n",
        b"5 path=a.png\n",
        b"999 path=a.png\n",
        b"99999999999999999999 path=a.png\n",
        b"-13 path=a.png\n",
        b"13 path a.png\n",
        b"3 \n10 path=b\n",
        b"path=a.png\n",
        b"\xff" * 600,
        b" " * 60_000,
        b"1" * 60_000,
        pax_record(b"comment", b"x" * (1 << 16)),
    ],
)
def test_absurd_pax_headers_end_the_shard(tmp_path, content):
    skipped = skips(tmp_path, entry("pax", content, type=tarfile.XHDTYPE), sample("z"))
    assert list(skipped) == ["s.tar"]
    assert skipped["s.tar"].startswith("shard damaged: at byte ")


def test_sizes_of_pax_headers_are_obeyed():
    def lying(name, content):
        return header(name, 0) + content + bytes(-len(content) % BLOCK)

    size, content = pax_record(b"size", b"700"), bytes(700)
    long_name = entry("././@LongLink", b"long.png\0", type=tarfile.GNUTYPE_LONGNAME)
    for_next = entry("pax", size, type=tarfile.XHDTYPE) + long_name + lying("a.png", content)
    for_all = entry("pax", size, type=tarfile.XGLTYPE) + lying("b.png", content) * 2
    found = members(for_next + entry("c.png", b"123") + for_all + END)
    expected = [("long.png", 700), ("c.png", 3), ("b.png", 700), ("b.png", 700)]
    assert [(member.name, member.size) for member in found] == expected


def test_a_long_chain_of_long_names_neither_recurses_nor_hangs():
    name = entry("././@LongLink", b"b.png\0", type=tarfile.GNUTYPE_LONGNAME)
    data = name * 3000 + entry("a.png", picture()) + END
    assert [member.name for member in members(data)] == ["b.png"]


def test_a_long_name_of_many_bytes_is_not_read():
    data = entry("././@LongLink", b"a" * 30_000_000, type=tarfile.GNUTYPE_LONGNAME) + END
    file = io.BytesIO(data)
    tracemalloc.start()
    found = list(list_members(file))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found[0].reason.startswith("damaged: at byte 512, an extension header of 30000000")
    assert peak < 1 << 20


def test_the_number_of_members_is_capped(tmp_path, monkeypatch):
    monkeypatch.setattr(headers, "MAX_HEADERS", 8)
    assert skips(tmp_path, sample("y"), sample("z"), kept="y") == {
        "s.tar": "shard too many members: over 8; split the archive"
    }
    monkeypatch.setattr(tar_module, "MAX_SAMPLES", 5)
    write(tmp_path / "t.tar", GOOD)
    fails(tmp_path, "over 5 pictures up to .*t.tar; give fewer shards")


def test_pictures_over_the_cap_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(shards_members, "MAX_PICTURE", 1000)
    skipped = skips(tmp_path, entry("a.png", bytes(1001)), entry("a.txt", b"a"))
    assert skipped == {"s.tar/a": "too large: a.png has 1001 bytes, at most 1000"}
