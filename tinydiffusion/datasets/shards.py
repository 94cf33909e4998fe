"""Captioned pictures of tar shards that need not fit into memory or on this machine's disk."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import torch

from tinydiffusion.abilities import Captioned, Fingerprinted, Selective, Streaming
from tinydiffusion.pictures.decode import UnusablePictureError
from tinydiffusion.pictures.packed import describe
from tinydiffusion.pictures.scan import Skipped
from tinydiffusion.pictures.views import check_limit, drawn_window, middle_window, view_of
from tinydiffusion.protocols import Example
from tinydiffusion.shards.addresses import find_set
from tinydiffusion.shards.left_out import LeftOut, load_example
from tinydiffusion.shards.order import BoundedShuffle
from tinydiffusion.shards.reader import ShardReader


class ShardsDataset(Streaming, Captioned, Selective, Fingerprinted):
    """The captioned pictures of tar shards, read when they are visited.

    The layout, the ids and the pixels are those of the data set `tar`. Only the index of a few
    shards is held in memory. In training the order of the shards is drawn anew for every epoch, and
    the pictures of each `window` are shuffled (see `shards/order.py`). The order of the pictures
    does not depend on the number of processes or on interruptions.

    Only headers are read at the start, and none where `tinydiffusion pack` has written a manifest.
    A picture that proves unusable when it is visited is left out with a warning: reading it raises
    `UnusablePictureError`, and training continues with the others of its batch.

    Args:
        path: A shard, a folder of shards, a pattern such as "shards/*.tar" or a range such as
            "shards/{00000..00099}.tar", local or at any address that fsspec reads, such as
            "s3://bucket/set".
        size: Side of every example, or [height, width]; smaller ones are unusable, not enlarged.
        fit: "crop" cuts pictures of other proportions, "pad" gives them a white border.
        crop: "center", or "random" for a window drawn at each visit.
        flip: Whether a visit mirrors the picture left to right with probability 1/2.
        max_value: The value that means white in files of more than 8 bits, such as 4095; None uses
            65535, or 4095 for a picture without a brighter value.
        limit: Use only the first `limit` pictures; None uses all.
        caption_column: The key that holds the caption in `.json` members.
        window: Number of pictures that are shuffled among each other, about those of ten shards.
        cache_gb: Gigabytes that all copies of remote shards together may take on this machine.

    Raises:
        ValueError: an option is out of range, there are no shards, one is compressed or unreadable,
            no picture has a caption, or more than half of those in the headers are unusable.
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
        caption_column: str = "text",
        window: int = 10_000,
        cache_gb: float = 20.0,
    ) -> None:
        self.view = view_of(size, fit=fit, crop=crop, flip=flip, max_value=max_value)
        check_limit(limit)
        self.caption_column = caption_column
        found = find_set(str(path))
        self._reader = ShardReader(found, window, cache_gb)
        self.skipped = self._reader.skipped
        counts = _first(self._reader.counts, limit)
        self._order = BoundedShuffle(counts, window)
        self._ends = list(accumulate(counts))
        self._left_out = LeftOut(self.skipped)
        if not len(self) or 2 * len(self.skipped) > len(self) + len(self.skipped):
            raise ValueError(
                f"{path}: {len(self)} usable pictures, and {len(self.skipped)} that cannot be "
                f"used; mend or remove them: {describe(self.skipped)}"
            )

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Example:
        """Return the example with its middle window, not mirrored; in the order of the shards."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is not in [0, {len(self)})")
        shard = bisect_right(self._ends, index)
        member = index - self._ends[shard] + self._order.counts[shard]
        example = self._usable(shard, member)
        return {**example, "image": middle_window(example["image"], self.view.size)}

    def visit(self, order_seed: int, place: int, generator: torch.Generator) -> Example:
        """Return the example at `place` of the epoch shuffled by `order_seed`, as for training."""
        example = self._usable(*self._order.locate(order_seed, place))
        return {**example, "image": drawn_window(example["image"], self.view, generator)}

    def captions(self) -> Iterator[str]:
        """Yield every caption of every example, shard by shard."""
        for shard, count in enumerate(self._order.counts):
            for number in range(count):
                found = self._reader.sample(shard, number, self.caption_column)
                if not isinstance(found, Skipped):
                    yield from [found.caption] if isinstance(found.caption, str) else found.caption

    def describe_skipped(self) -> str:
        """Return the number of pictures left out for each reason; empty where none was."""
        return self._left_out.describe()

    def fingerprints(self) -> Mapping[str, str]:
        """Return shard -> its SHA-256 in the manifest; without a manifest, that of its index."""
        return self._reader.fingerprints()

    def _usable(self, shard: int, member: int) -> Example:
        """Read the example, before its window is cut.

        Raises:
            UnusablePictureError: the picture cannot be used; names it.
        """
        index = self._reader.index(shard)
        with self._left_out.noting(f"{index.shard}/{index.keys[member]}"):
            found = self._reader.sample(shard, member, self.caption_column)
            if isinstance(found, Skipped):
                raise UnusablePictureError(found.reason)
            assert isinstance(found.source, bytes)
            return load_example(found.id, found.source, found.caption, self.view)


def _first(counts: list[int], limit: int | None) -> list[int]:
    """Return the number of pictures of each shard among the first `limit` pictures."""
    if limit is None:
        return counts
    ends = accumulate(counts)
    return [max(0, min(c, limit - end + c)) for c, end in zip(counts, ends, strict=True)]


PLUGIN = ShardsDataset
