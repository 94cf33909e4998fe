"""Where the samples of one shard lie: read from its headers once, and kept in the cache."""

import hashlib
import json
from io import BufferedReader
from typing import NamedTuple

import numpy as np

from tinydiffusion.pictures.cache import read_entry, write_entry
from tinydiffusion.pictures.scan import Skipped
from tinydiffusion.shards.headers import Member
from tinydiffusion.shards.members import MAX_PICTURE, Sample, index_shard

SCHEMA = 2  # of the cache; to be raised when the same shard comes to give another index


class ShardIndex(NamedTuple):
    """The samples of one shard that have a picture and a caption, compact."""

    shard: str
    keys: list[str]
    places: np.ndarray  # (N, 5) int64: offset and size of picture and caption; 1 for text, 0 JSON
    skipped: list[Skipped]

    def sample(self, number: int) -> Sample:
        """Sample `number` of the shard, as `index_shard` gives it."""
        key = self.keys[number]
        start, size, caption_start, caption_size, is_text = self.places[number].tolist()
        caption = Member(key, caption_start, caption_size)
        role = "text" if is_text else "json"
        parts = {"picture": Member(key, start, size), role: caption}
        return Sample(f"{self.shard}/{key}", parts)

    def digest(self) -> str:
        """SHA-256 of all names and places: what is known of a shard that was not read in full."""
        content = json.dumps([self.keys, self.places.tolist()]).encode()
        return hashlib.sha256(content).hexdigest()


def cached_index(shard: str, stamp: str) -> ShardIndex | None:
    """The index of a shard that is in the cache.

    Args:
        shard: Its name.
        stamp: Where it lies, and what changes with its content.
    """
    if (entry := read_entry(_key(shard, stamp))) is None:
        return None
    about, content = entry
    places = np.frombuffer(content.numpy().tobytes(), np.int64).reshape(-1, 5)
    skipped = [Skipped(*item) for item in about["skipped"]]
    return ShardIndex(shard, about["keys"], places, skipped)


def read_index(file: BufferedReader, shard: str, stamp: str) -> ShardIndex:
    """The index of an open shard, which then is in the cache."""
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
    """What the headers alone tell of a sample."""
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
