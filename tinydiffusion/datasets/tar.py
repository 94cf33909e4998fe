"""Captioned pictures of tar shards in the WebDataset layout, read in place."""

from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tinydiffusion.datasets._captions import (
    Caption,
    caption_of,
    clean_caption,
    decode,
    parse_record,
)
from tinydiffusion.datasets._packed import Found, PackedDataset, Skipped
from tinydiffusion.datasets._pictures import is_picture_name
from tinydiffusion.datasets._tar import Fault, Member, list_members

MAX_PICTURE, MAX_TEXT = 64 << 20, 1 << 20  # bytes
MAX_SAMPLES = 5_000_000  # of all shards together
ROLES = {".txt": "text", ".caption": "text", ".json": "json"}
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh91AY&SY": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
WILDCARDS = "*?["


class TarDataset(PackedDataset):
    """The captioned pictures of tar shards, shards sorted by name, pictures in their order.

    A picture's caption is the member of the same name that ends in `.txt` or `.caption`, else the
    caption column of the one that ends in `.json`; they may stand anywhere in the shard. Ids are
    `shard.tar/name`. Other members are not read. Where a shard is cut or damaged, what lies
    before that place is used. `skipped` names all that is left out, with the reason.

    Shards are listed first, by their headers alone; then pictures are read one at a time.

    Args:
        path: A shard, a folder of shards, or a pattern such as "shards/*.tar".
        size: Width and height of every example; smaller pictures are skipped, not blown up.
        crop: "center", or "random" for a window drawn at each visit.
        flip: Whether a visit mirrors the picture left to right with probability 1/2.
        limit: Stop after this many usable pictures; None takes all.
        workers: Threads that decode; alters no example.
        caption_column: The key that holds the caption in `.json` members.

    Raises:
        ValueError: no shards, a compressed or unreadable one, no usable picture, or more than
            half of what was found unusable.
    """

    def __init__(
        self,
        *,
        path: str | Path,
        size: int = 32,
        crop: str = "center",
        flip: bool = False,
        limit: int | None = None,
        workers: int = 2,
        caption_column: str = "text",
    ) -> None:
        root, shards = find_shards(Path(path))
        index = _index(root, shards)
        super().__init__(
            _read_samples(index, caption_column),
            total=sum(map(len, index.values())),
            name=str(path),
            size=size,
            crop=crop,
            flip=flip,
            limit=limit,
            workers=workers,
        )


class Sample(NamedTuple):
    """The members of a shard that share a name but for its suffix."""

    id: str
    parts: dict[str, Member]  # by role: "picture", "text", "json"


def find_shards(path: Path) -> tuple[Path, list[Path]]:
    """The folder that ids begin from, and the shards, sorted."""
    wild = [number for number, part in enumerate(path.parts) if set(part) & set(WILDCARDS)]
    if path.is_dir():
        root, found = path, [file for file in path.iterdir() if file.name.endswith(SUFFIXES)]
    elif wild and not path.exists():
        root = Path(*path.parts[: wild[0]])
        found = list(root.glob(str(Path(*path.parts[wild[0] :]))))
    else:
        root, found = path.parent, [path]
    shards = sorted(file for file in found if not file.name.startswith("."))
    if not shards:
        raise ValueError(f"no shards in {path}; give a .tar file, a folder of them or a pattern")
    return root, shards


def _index(root: Path, shards: list[Path]) -> dict[Path, list[Sample | Skipped]]:
    index: dict[Path, list[Sample | Skipped]] = {}
    total = 0
    for shard in shards:
        with _open(shard) as file:
            _check_uncompressed(file, shard)
            index[shard] = index_shard(file, shard.relative_to(root).as_posix())
        total += len(index[shard])
        if total > MAX_SAMPLES:
            raise ValueError(f"over {MAX_SAMPLES} pictures up to {shard}; give fewer shards")
    return index


def index_shard(file: BufferedIOBase, shard: str) -> list[Sample | Skipped]:
    """What was left out of a shard, then its samples in the order of their first members."""
    samples: dict[str, Sample] = {}
    skipped: list[Skipped] = []
    others: list[str] = []
    for entry in list_members(file):
        if isinstance(entry, Fault):
            skipped.append(_skip(shard, entry))
            continue
        key, role = _key_and_role(entry.name)
        if not role:
            others.append(entry.name)
            continue
        parts = samples.setdefault(key, Sample(f"{shard}/{key}", {})).parts
        if role in parts:
            reason = f"a second {role} of its name: {parts[role].name} comes first"
            skipped.append(Skipped(f"{shard}/{entry.name}", reason))
        parts.setdefault(role, entry)
    if others:  # one entry: extras of usable samples must not outweigh them
        reason = f"not a picture or caption: {len(others)} members"
        skipped.append(Skipped(f"{shard}/{others[0]}", reason))
    return [*skipped, *samples.values()]


def _skip(shard: str, fault: Fault) -> Skipped:
    if fault.name is None:
        return Skipped(shard, f"shard {fault.reason}")
    return Skipped(f"{shard}/{fault.name}", fault.reason)


def _key_and_role(name: str) -> tuple[str, str]:
    """The name without its suffix and what the member is, empty where it is of no use."""
    path = PurePosixPath(name)
    if any(part.startswith(".") for part in path.parts):
        return "", ""
    role = "picture" if is_picture_name(name) else ROLES.get(path.suffix.lower(), "")
    return str(path.with_suffix("")), role


def _open(shard: Path) -> BufferedIOBase:
    try:
        if not shard.is_file():  # to open a pipe would wait for ever
            raise ValueError(f"no such shard, or not a file: {shard}")
        return shard.open("rb")
    except OSError as error:
        raise ValueError(f"cannot read shard {shard}: {error.strerror}") from error


def _check_uncompressed(file: BufferedIOBase, shard: Path) -> None:
    start = file.read(max(map(len, COMPRESSED)))
    for magic, kind in COMPRESSED.items():
        if start.startswith(magic):
            raise ValueError(
                f"shard {shard} is compressed ({kind}); unpack it to a plain .tar, "
                "its pictures are compressed already"
            )


def _read_samples(
    index: dict[Path, list[Sample | Skipped]], caption_column: str
) -> Iterator[Found | Skipped]:
    for shard, samples in index.items():
        with _open(shard) as file:
            for sample in samples:
                is_sample = isinstance(sample, Sample)
                yield _read_sample(file, sample, caption_column) if is_sample else sample


def _read_sample(file: BufferedIOBase, sample: Sample, caption_column: str) -> Found | Skipped:
    if "picture" not in sample.parts:
        return Skipped(sample.id, "a caption without a picture")
    try:
        caption = _read_caption(file, sample.parts, caption_column)
        return Found(sample.id, _read(file, sample.parts["picture"], MAX_PICTURE), caption)
    except ValueError as error:
        return Skipped(sample.id, str(error))


def _read(file: BufferedIOBase, member: Member, most: int) -> bytes:
    if member.size > most:
        raise ValueError(f"too large: {member.name} has {member.size} bytes, at most {most}")
    file.seek(member.offset)
    return file.read(member.size)


def _read_caption(file: BufferedIOBase, parts: dict[str, Member], column: str) -> Caption:
    member = parts.get("text") or parts.get("json")
    if member is None:
        return ""
    content = _read(file, member, MAX_TEXT)
    try:
        text = decode(content)
        return clean_caption(text) if "text" in parts else caption_of(parse_record(text), column)
    except ValueError as error:
        raise ValueError(f"unreadable caption: {member.name}: {error}") from error


PLUGIN = TarDataset
