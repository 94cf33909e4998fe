"""Text states of many captions on disk: few files, written atomically and memory-mapped."""

import contextlib
import hashlib
import uuid
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt64
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from tinydiffusion.runtime.durable import make_folder, replace_file
from tinydiffusion.text.state_cache import CaptionStates

PARTS = "[0-9a-f]*.safetensors"
ENTRY = np.dtype(
    [
        ("key", "<u8"),  # first 8 bytes of the caption's SHA-256
        ("rest", "<u8"),  # next 8 bytes
        ("part", "<i8"),
        ("row", "<i8"),  # in the part's pooled states
        ("start", "<i8"),  # in the part's hidden states
        ("length", "<i8"),
        ("crc", "<i8"),
    ]
)
INDEX, STATES = ("keys", "lengths", "checksums"), ("hidden", "pooled")
BYTES_PER_CAPTION = 32  # in a part, besides the states: key, length and CRC-32


class _Part(NamedTuple):
    """The states of a file, memory-mapped: those that are not read take no memory."""

    path: Path
    hidden: Float[Tensor, "N D"]  # states of all its captions, concatenated
    pooled: Float[Tensor, "M P"]


class StatesFolder:
    """A map from captions to states in a folder of parts, to which any process may add parts.

    Parts are safetensors files that are never changed. They take 64 bytes of memory per caption.
    A damaged part is removed with a warning: its states can be computed again.

    Args:
        folder: Folder of one encoder with certain weights; need not exist.
        dtype: Type of the stored states, float32 or float16.
    """

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.folder, self.dtype = folder, dtype
        self._dtypes = dict.fromkeys(INDEX, torch.int64) | dict.fromkeys(STATES, dtype)
        self._parts: list[_Part] = []
        self._known: set[str] = set()
        self._entries = np.empty(0, ENTRY)
        self._keys = self._entries["key"]

    def find(self, captions: Iterable[str]) -> dict[str, CaptionStates]:
        """Return the states of those captions that are stored, in the stored type."""
        unique = list(dict.fromkeys(captions))
        keys = caption_keys(unique)
        places = self._places(keys)
        if (places < 0).any() and self._take_in():
            places = self._places(keys)
        there = [(c, p) for c, p in zip(unique, places.tolist(), strict=True) if p >= 0]
        entries = self._entries[[p for _, p in there]]  # copied, as a damaged part removes some
        read = {c: self._read(*row.tolist()) for (c, _), row in zip(there, entries, strict=True)}
        return {caption: states for caption, states in read.items() if states is not None}

    def missing(self, captions: Sequence[str]) -> list[str]:
        """Return the captions whose states are not stored."""
        self._take_in()
        places = self._places(caption_keys(captions))
        return [caption for caption, place in zip(captions, places, strict=True) if place < 0]

    def add(self, states: Mapping[str, CaptionStates]) -> None:
        """Write the states as one part, atomically.

        Raises:
            ValueError: a state overflows the stored precision.
            OSError: the part cannot be written.
        """
        lengths = [len(own.hidden) for own in states.values()]
        hidden = self._stored(torch.cat([own.hidden for own in states.values()]))
        pooled = self._stored(torch.stack([own.pooled for own in states.values()]))
        stored = map(CaptionStates, hidden.split(lengths), pooled)
        tensors = {
            "keys": torch.tensor(caption_keys(list(states)).view(np.int64)),
            "lengths": torch.tensor(lengths),
            "checksums": torch.tensor([_checksum(own) for own in stored]),
            "hidden": hidden,
            "pooled": pooled,
        }
        make_folder(self.folder)
        replace_file(self.folder / f"{uuid.uuid4().hex}.safetensors", save(tensors))

    def _stored(self, states: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        stored = states.to(self.dtype)
        if not stored.isfinite().all() and states.isfinite().all():
            largest = float(states.abs().max())
            raise ValueError(
                f"a text state of {largest:.3g} does not fit float16, whose largest is 65504; "
                "set text_encoder.cache_dtype to float32"
            )
        return stored

    def _places(self, keys: UInt64[np.ndarray, "N 2"]) -> Int[np.ndarray, "N"]:
        """Return the indices of the keys' entries; -1 for keys that are not stored."""
        if not len(self._entries):
            return np.full(len(keys), -1)
        places = np.searchsorted(self._keys, keys[:, 0]).clip(max=len(self._entries) - 1)
        found = self._entries[places]
        same = (found["key"] == keys[:, 0]) & (found["rest"] == keys[:, 1])
        return np.where(same, places, -1)

    def _take_in(self) -> bool:
        """Open the parts that were added since the last call; return whether there were any."""
        new = sorted(p for p in self.folder.glob(PARTS) if p.name not in self._known)
        opened = [self._open(path) for path in new]
        self._set_entries([self._entries, *(entries for entries in opened if entries is not None)])
        return bool(new)

    def _set_entries(self, parts: list[np.ndarray]) -> None:
        if len(parts) > 1:
            entries = np.concatenate(parts)
            self._entries = entries[np.argsort(entries["key"], kind="stable")]
            self._keys = self._entries["key"].copy()  # contiguous, for the search

    def _open(self, path: Path) -> np.ndarray | None:
        self._known.add(path.name)
        try:
            tensors = load_file(path)
            if any(tensors[name].dtype != dtype for name, dtype in self._dtypes.items()):
                raise ValueError("a tensor is of another type")
            entries = _entries(tensors, len(self._parts))
        except FileNotFoundError:  # another process has found it damaged
            return None
        except (SafetensorError, KeyError, ValueError) as error:
            _remove(path, str(error))
            return None
        self._parts.append(_Part(path, tensors["hidden"], tensors["pooled"]))
        return entries

    def _read(
        self, key: int, rest: int, number: int, row: int, start: int, length: int, crc: int
    ) -> CaptionStates | None:
        del key, rest
        part = self._parts[number]
        states = CaptionStates(part.hidden[start : start + length], part.pooled[row])
        if _checksum(states) == crc:
            return states
        _remove(part.path, "a checksum differs")
        self._entries = self._entries[self._entries["part"] != number]
        self._keys = self._entries["key"].copy()
        return None


def caption_keys(captions: Sequence[str]) -> UInt64[np.ndarray, "N 2"]:
    """Return the first 16 bytes of each caption's SHA-256, as two integers."""
    digests = (hashlib.sha256(c.encode("utf-8", "surrogatepass")).digest()[:16] for c in captions)
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)


def _entries(tensors: Mapping[str, Tensor], number: int) -> np.ndarray:
    """Return the index entries of a part.

    Raises:
        ValueError: the sizes of its tensors do not agree.
    """
    keys, lengths = tensors["keys"].numpy().view("<u8"), tensors["lengths"].numpy()
    ends = lengths.cumsum()
    if not len(keys) == len(lengths) == len(tensors["pooled"]) == len(tensors["checksums"]):
        raise ValueError("its captions are not as many as its states")
    if lengths.min() < 1 or ends[-1] != len(tensors["hidden"]):
        raise ValueError("its lengths are not those of its states")
    entries = np.empty(len(keys), ENTRY)
    entries["key"], entries["rest"] = keys.T
    entries["part"], entries["row"] = number, np.arange(len(keys))
    entries["start"], entries["length"] = ends - lengths, lengths
    entries["crc"] = tensors["checksums"].numpy()
    return entries


def _checksum(states: CaptionStates) -> int:
    return zlib.crc32(states.pooled.numpy().data, zlib.crc32(states.hidden.numpy().data))


def _remove(path: Path, reason: str) -> None:
    warnings.warn(
        f"{path}: damaged text states ({reason}); the file is removed and what it held is "
        "computed again",
        stacklevel=4,
    )
    with contextlib.suppress(OSError):  # not writable: the warning will be repeated
        path.unlink(missing_ok=True)
