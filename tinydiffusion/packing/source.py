"""Input of `tinydiffusion pack`: any data set, picture by picture."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from tinydiffusion.build import build_dataset
from tinydiffusion.config import plugin
from tinydiffusion.datasets.folder import find_pictures
from tinydiffusion.pictures.packed import PackedDataset
from tinydiffusion.pictures.scan import Found, Skipped
from tinydiffusion.protocols import Dataset, Example
from tinydiffusion.shards.addresses import find_set
from tinydiffusion.shards.members import (
    Sample,
    find_shards,
    index_shard,
    open_shard,
    read_at,
    read_sample,
)
from tinydiffusion.shards.reader import ShardReader

Item = Found | Skipped | Example
CAPTION_COLUMN, CACHE_GB = "text", 20.0  # the data sets' own defaults


class Source(NamedTuple):
    """A set to be packed."""

    items: Callable[[int], Iterator[Item]]  # from an index on, always the same
    limit: int | None = None  # largest number of usable pictures


def id_of(item: Item) -> str:
    """Return the id of an item."""
    if isinstance(item, Skipped):
        return item.path
    return item.id if isinstance(item, Found) else item["id"]


def open_source(section: dict[str, Any]) -> Source:
    """Open the data set of a config's `dataset` section for packing.

    Folders and shards are read one picture at a time; other data sets are built and give their
    examples.

    Raises:
        ValueError: there is no such set, or it is broken.
    """
    name, options = plugin(section)
    column = options.get("caption_column", CAPTION_COLUMN)
    if name == "folder":
        pictures = find_pictures(Path(options["path"]), column, options.get("captions", "auto"))
        return Source(lambda start: islice(pictures, start, None), options.get("limit"))
    if name == "tar":
        root, shards = find_shards(Path(options["path"]))
        return Source(partial(_of_shards, root, shards, column), options.get("limit"))
    if name == "shards":
        reader = ShardReader(find_set(str(options["path"])), 1, options.get("cache_gb", CACHE_GB))
        return Source(partial(_of_reader, reader, column), options.get("limit"))
    dataset = build_dataset(section)
    if isinstance(dataset, PackedDataset):
        return Source(partial(_of_packed, dataset))
    return Source(partial(_of_examples, dataset))


def _of_shards(root: Path, shards: list[Path], column: str, start: int) -> Iterator[Item]:
    for shard in shards:
        with open_shard(shard) as file:
            entries = index_shard(file, shard.relative_to(root).as_posix())
            read = partial(read_at, file)
            for entry in entries[start:]:
                yield read_sample(read, entry, column) if isinstance(entry, Sample) else entry
            start = max(0, start - len(entries))


def _of_reader(reader: ShardReader, column: str, start: int) -> Iterator[Item]:
    yield from reader.skipped[start:]
    start = max(0, start - len(reader.skipped))
    for shard, count in enumerate(reader.counts):
        for member in range(start, count):
            yield reader.sample(shard, member, column)
        start = max(0, start - count)


def _of_packed(dataset: PackedDataset, start: int) -> Iterator[Item]:
    """Yield the pictures of a packed data set before windows are cut, then the skipped ones."""
    samples = dataset.scan.samples
    for index in range(start, len(samples)):
        pixels, sample = dataset.scan.pixels(index), samples[index]
        yield Example(image=pixels, caption=sample.caption, id=sample.id)
    yield from dataset.skipped[max(0, start - len(samples)) :]


def _of_examples(dataset: Dataset, start: int) -> Iterator[Item]:
    for index in range(start, len(dataset)):
        yield dataset[index]
