"""Index of the samples of one shard: read from its headers once, and cached on disk."""

import hashlib
import json
from io import BufferedReader
from typing import NamedTuple

import numpy as np

from tinydiffusion.pictures.cache import read_entry, write_entry
from tinydiffusion.pictures.scan import Skipped
from tinydiffusion.shards.headers import Member
from tinydiffusion.shards.members import MAX_PICTURE, Sample, index_shard

SCHEMA = 2  # version of the cache; to be raised when the index of the same shard changes


class ShardIndex(NamedTuple):
    """A compact index of the samples of one shard that have a picture and a caption."""

    shard: str
    keys: list[str]
    places: np.ndarray  # (N, 5) int64: offset and size of picture and caption; 1 for text, 0 JSON
    skipped: list[Skipped]

    def sample(self, number: int) -> Sample:
        """Return sample `number` of the shard, as `index_shard` does."""
        key = self.keys[number]
        start, size, caption_start, caption_size, is_text = self.places[number].tolist()
        caption = Member(key, caption_start, caption_size)
        role = "text" if is_text else "json"
        parts = {"picture": Member(key, start, size), role: caption}
        return Sample(f"{self.shard}/{key}", parts)

    def digest(self) -> str:
        """Return the SHA-256 of all names and places: the pictures themselves are not read."""
        content = json.dumps([self.keys, self.places.tolist()]).encode()
        return hashlib.sha256(content).hexdigest()


def cached_index(shard: str, stamp: str) -> ShardIndex | None:
    """Return the index of a shard from the cache, None where it is not there.

    Args:
        shard: Name of the shard.
        stamp: Text that depends on the place and content of the shard, see `Shard.stamp`.
    """
    if (entry := read_entry(_key(shard, stamp))) is None:
        return None
    about, content = entry
    places = np.frombuffer(content.numpy().tobytes(), np.int64).reshape(-1, 5)
    skipped = [Skipped(*item) for item in about["skipped"]]
    return ShardIndex(shard, about["keys"], places, skipped)


def read_index(file: BufferedReader, shard: str, stamp: str) -> ShardIndex:
    """Read the index of an open shard, and write it to the cache."""
    entries = [_checked(entry) for entry in index_shard(file, shard)]
    samples = [entry for entry in entries if isinstance(entry, Sample)]
    index = ShardIndex(
        shard,
        [sample.id[len(shard) + 1 :] for sample in samples],
        np.array([_place(sample) for sample in samples], np.int64).reshape(-1, 5),
        [entry for entry in entries if isinstance(entry, Skipped)],
    )
    if samples:
        about = {"keys": index.keys, "skipped": index.skipped}
        write_entry(_key(shard, stamp), about, bytearray(index.places.tobytes()))
    return index


def _key(shard: str, stamp: str) -> str:
    return hashlib.sha256(json.dumps(["shard", SCHEMA, shard, stamp]).encode()).hexdigest()


def _checked(entry: Sample | Skipped) -> Sample | Skipped:
    """Return the sample, or why it cannot be used, as far as the headers show."""
    if isinstance(entry, Skipped):
        return entry
    if "picture" not in entry.parts:
        return Skipped(entry.id, "a caption without a picture")
    if len(entry.parts) == 1:
        return Skipped(entry.id, "without caption")
    picture = entry.parts["picture"]
    if picture.size > MAX_PICTURE:
        reason = f"too large: {picture.name} has {picture.size} bytes, at most {MAX_PICTURE}"
        return Skipped(entry.id, reason)
    return entry


def _place(sample: Sample) -> tuple[int, int, int, int, bool]:
    picture = sample.parts["picture"]
    caption = sample.parts.get("text") or sample.parts["json"]
    return picture.offset, picture.size, caption.offset, caption.size, "text" in sample.parts
