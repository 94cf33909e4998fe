"""Reader of any sample of a set of shards, with a few shards open at a time."""

import os
from functools import lru_cache, partial
from io import BufferedReader
from pathlib import Path
from typing import Any

from tinydiffusion.pictures.scan import Found, Skipped
from tinydiffusion.shards.addresses import Shard, ShardSet, stamp_of
from tinydiffusion.shards.copies import ShardCopies, ShardError
from tinydiffusion.shards.index import ShardIndex, cached_index, read_index
from tinydiffusion.shards.manifest import ShardRecord
from tinydiffusion.shards.members import open_shard, read_at, read_sample

MAX_OPEN = 128  # files; the limit of a process is 1024, or often 256
SPARE = 8  # shards whose index is cached in addition to those of one window


class ShardReader:
    """A reader of the samples of a set of shards, by shard and number.

    It is pickled without its caches and open files, for the processes that load.

    Attributes:
        counts: Number of samples of each shard that have a picture and a caption.
        skipped: Members that cannot be used, as far as headers and manifest show.

    Args:
        found: The shards.
        window: Number of pictures that are shuffled; determines how many shards are cached.
        cache_gb: Gigabytes (10⁹ bytes) that copies of remote shards may take.

    Raises:
        ValueError: a shard cannot be read or is compressed, or `cache_gb` is too low.
    """

    def __init__(self, found: ShardSet, window: int, cache_gb: float) -> None:
        self._shards = found.shards
        self._copies = ShardCopies(int(cache_gb * 1e9))
        self._keep(SPARE)
        self.skipped = list(found.skipped)
        self.counts = [self._count(number) for number in range(len(self._shards))]
        touched = min(len(self._shards), 2 + window * len(self._shards) // max(1, sum(self.counts)))
        self._check_room(touched, cache_gb)
        self._keep(SPARE + touched)

    def index(self, number: int) -> ShardIndex:
        """Return the index of a shard; its headers are read if it is not cached.

        Raises:
            ShardError: the shard has another number of samples than its manifest has recorded.
        """
        return self._index(number)

    def sample(self, number: int, member: int, caption_column: str) -> Found | Skipped:
        """Read sample `member` of a shard, undecoded, or return why it cannot be used.

        Raises:
            ShardError: the shard cannot be read, or has changed.
        """
        return read_sample(
            partial(self._read, number), self._index(number).sample(member), caption_column
        )

    def _read(self, number: int, offset: int, size: int) -> bytes:
        shard = self._shards[number]
        try:
            content = read_at(self._file(number).file, offset, size)
        except OSError as error:
            raise ShardError(f"cannot read shard {shard.place}: {error.strerror}") from error
        if len(content) < size:
            raise _changed(shard, "is shorter than it was")
        return content

    def fingerprints(self) -> dict[str, str]:
        """Return shard -> SHA-256 of the file, or of its index where no manifest has the former."""
        return {
            shard.name: shard.packed.sha256 if shard.packed else self.index(number).digest()
            for number, shard in enumerate(self._shards)
        }

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_index", "_file")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._keep(self._kept)

    def _keep(self, kept: int) -> None:
        """Make caches of the indices of `kept` shards, and of at most `MAX_OPEN` open files."""
        self._kept = kept
        self._index = lru_cache(kept)(self._read_index)
        self._file = lru_cache(min(kept, MAX_OPEN))(self._open)

    def _count(self, number: int) -> int:
        shard = self._shards[number]
        if shard.packed:
            return shard.packed.pictures
        index = self.index(number)
        self.skipped += index.skipped
        if shard.record is not None:
            self.skipped.append(_no_longer_packed(shard, shard.record, len(index.keys)))
        return len(index.keys)

    def _read_index(self, number: int) -> ShardIndex:
        shard = self._shards[number]
        index = cached_index(shard.name, shard.stamp)
        if index is None:
            index = read_index(self._file(number).file, shard.name, shard.stamp)
        if shard.packed and len(index.keys) != shard.packed.pictures:
            found = f"{len(index.keys)} of {shard.packed.pictures} pictures are left"
            raise _changed(shard, f"is not as it was packed: {found}")
        return index

    def _open(self, number: int) -> "_Open":
        shard = self._shards[number]
        file = self._copies.open(shard) if shard.is_remote else open_shard(Path(shard.place))
        opened = _Open(file)
        if not shard.is_remote and stamp_of(shard.place, os.fstat(file.fileno())) != shard.stamp:
            raise _changed(shard, "is not the file that it was at the start")
        return opened

    def _check_room(self, num_shards: int, cache_gb: float) -> None:
        sizes = sorted((s.size or 0 for s in self._shards if s.is_remote), reverse=True)
        needed = sum(sizes[:num_shards]) / 1e9
        if needed > cache_gb:
            raise ValueError(
                f"a window touches up to {num_shards} shards, {needed:.2g} GB; copies of them have "
                f"cache_gb={cache_gb:g}. Raise it or lower window"
            )


class _Open:
    """An open file that is closed with its last reference: another thread may be reading it."""

    def __init__(self, file: BufferedReader) -> None:
        self.file = file

    def __del__(self) -> None:
        self.file.close()


def _no_longer_packed(shard: Shard, record: ShardRecord, left: int) -> Skipped:
    reason = f"shard not as it was packed: {shard.size} bytes where {record.bytes} were written"
    return Skipped(shard.name, f"{reason}; {left} of {record.pictures} pictures are left")


def _changed(shard: Shard, how: str) -> ShardError:
    return ShardError(f"shard {shard.place} {how}; mend it, or start again to go without")
