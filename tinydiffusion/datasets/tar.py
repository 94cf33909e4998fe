"""Captioned pictures of tar shards in the WebDataset layout, read in place."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from tinydiffusion.pictures.packed import Found, PackedDataset, Skipped
from tinydiffusion.shards.members import (
    Sample,
    find_shards,
    index_shard,
    open_shard,
    read_at,
    read_sample,
)

MAX_SAMPLES = 5_000_000  # samples of all shards together


class TarDataset(PackedDataset):
    """The captioned pictures of tar shards, sorted by shard name, then in the shard's order.

    A picture's caption is the member of the same name that ends in `.txt` or `.caption`, else the
    caption column of the one that ends in `.json`; they may be anywhere in the shard. A lone
    `x.input.png` is joined with a lone `x.output.txt`. Ids are `shard.tar/name`. Other members are
    not read. If a shard is truncated or damaged, the members before that place are used. `skipped`
    lists everything that is left out, with the reason.

    First the headers of all shards are read; then pictures are read one at a time.

    Args:
        path: A shard, a folder of shards, a pattern such as "shards/*.tar", or a range such as
            "shards/{00000..00099}.tar".
        size: Side of every example, or [height, width]; smaller pictures are skipped, not enlarged.
        fit: "crop" cuts pictures of other proportions, "pad" gives them a white border.
        crop: "center", or "random" for a window drawn at each visit.
        flip: Whether a visit mirrors the picture left to right with probability 1/2.
        max_value: The value that means white in files of more than 8 bits, such as 4095; None uses
            65535, or 4095 for a picture without a brighter value.
        limit: Stop after this many usable pictures; None uses all.
        workers: Number of threads that decode; does not change the examples.
        caption_column: The key that holds the caption in `.json` members.

    Raises:
        ValueError: there are no shards, one is compressed or unreadable, no picture is usable, or
            more than half of what was found is unusable.
    """

    def __init__(
        self,
        *,
        path: str | Path,
        size: int | Sequence[int] = 32,
        fit: str = "crop",
        crop: str = "center",
        flip: bool = False,
        max_value: int | None = None,
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
            fit=fit,
            crop=crop,
            flip=flip,
            max_value=max_value,
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
