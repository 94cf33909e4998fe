"""Captioned pictures of tar shards in the WebDataset layout, read in place."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tinydiffusion.datasets._packed import Found, PackedDataset, Skipped
from tinydiffusion.datasets._samples import (
    Sample,
    find_shards,
    index_shard,
    open_shard,
    read_at,
    read_sample,
)

MAX_SAMPLES = 5_000_000  # of all shards together


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


def _index(root: Path, shards: list[Path]) -> dict[Path, list[Sample | Skipped]]:
    index: dict[Path, list[Sample | Skipped]] = {}
    total = 0
    for shard in shards:
        with open_shard(shard) as file:
            index[shard] = index_shard(file, shard.relative_to(root).as_posix())
        total += len(index[shard])
        if total > MAX_SAMPLES:
            raise ValueError(
                f"over {MAX_SAMPLES} pictures up to {shard}; give fewer shards, or take the data "
                "set 'shards', which keeps none in memory"
            )
    return index


def _read_samples(
    index: dict[Path, list[Sample | Skipped]], caption_column: str
) -> Iterator[Found | Skipped]:
    for shard, samples in index.items():
        with open_shard(shard) as file:
            read = partial(read_at, file)
            for sample in samples:
                is_sample = isinstance(sample, Sample)
                yield read_sample(read, sample, caption_column) if is_sample else sample


PLUGIN = TarDataset
