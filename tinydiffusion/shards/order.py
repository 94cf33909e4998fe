"""A bounded shuffle: the order of the pictures of shards, as a pure function of a seed.

The order of the shards is drawn anew for every epoch. Their concatenated pictures are cut into
windows, and each window is shuffled. So a process reads a few shards at a time, and can begin
anywhere in the epoch without reading what came before.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor


class _Epoch(NamedTuple):
    """The shards of one epoch, in their order."""

    order_seed: int
    shards: list[int]
    ends: list[int]  # cumulative number of pictures, including each shard


class BoundedShuffle:
    """An order in which every picture comes once per epoch, and those of a shard close together.

    It takes O(shards + window) memory, whatever the number of pictures.

    Args:
        counts: Number of pictures of each shard; may be 0.
        window: Number of pictures that are shuffled among each other.

    Raises:
        ValueError: `window` is below 1.
    """

    def __init__(self, counts: Sequence[int], window: int) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1 picture, got {window}")
        self.counts = list(counts)
        self.window = window
        self._length = sum(self.counts)
        self._epoch: _Epoch | None = None

    def __len__(self) -> int:
        return self._length

    def locate(self, order_seed: int, place: int) -> tuple[int, int]:
        """Return the shard of the picture at `place` of an epoch, and its number in the shard.

        Args:
            order_seed: Seed of the epoch's order.
            place: Place in the epoch, in [0, len(self)).

        Raises:
            IndexError: `place` is out of range.
        """
        if not 0 <= place < self._length:
            raise IndexError(f"place {place} is not in [0, {self._length})")
        window, offset = divmod(place, self.window)
        first = window * self.window
        length = min(self.window, self._length - first)
        shuffled = first + int(_permutation(order_seed, window, length)[offset])
        epoch = self._epoch_of(order_seed)
        turn = bisect_right(epoch.ends, shuffled)
        shard = epoch.shards[turn]
        return shard, shuffled - epoch.ends[turn] + self.counts[shard]

    def _epoch_of(self, order_seed: int) -> _Epoch:
        epoch = self._epoch
        if epoch is None or epoch.order_seed != order_seed:
            shards = _permutation(order_seed, -1, len(self.counts)).tolist()
            ends = list(accumulate(self.counts[shard] for shard in shards))
            epoch = self._epoch = _Epoch(order_seed, shards, ends)
        return epoch


@lru_cache(maxsize=4)  # a batch may span two windows, or two epochs
def _permutation(order_seed: int, window: int, length: int) -> Int[Tensor, "N"]:
    """Return the shuffled numbers of [0, length). Shared by callers: do not write."""
    digest = hashlib.blake2b(f"{order_seed}/{window}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randperm(length, generator=generator)
