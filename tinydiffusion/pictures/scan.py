"""Scan of a set of pictures: each is decoded in full, once, and the result is cached.

Both the data sets of training and `tinydiffusion data` use it.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import PIL
import torch
from jaxtyping import UInt8
from torch import Tensor

from tinydiffusion.pictures.cache import read_entry, write_entry
from tinydiffusion.pictures.captions import MAX_CAPTION_LENGTH, Caption, mend_caption
from tinydiffusion.pictures.decode import (
    PassingFaultError,
    Picture,
    Size,
    UnusablePictureError,
    center_crop,
    is_large_enough,
    load_picture,
    pad,
    picture_sha256,
    quiet,
)
from tinydiffusion.pictures.views import View

SCHEMA = 2  # version of the cache; to be raised when the pixels or notes of the same file change
PART_LENGTH = 256  # pictures; a part is decoded and cached as a whole
PART_BYTES = 1 << 26  # bound of a part's pictures that are given as bytes

Map = Callable[..., Iterator[Any]]


class Found(NamedTuple):
    """A captioned picture, not yet decoded."""

    id: str
    source: Path | bytes | None  # None where the data set has a row but no picture
    caption: Caption


class Skipped(NamedTuple):
    """A picture that is left out; the text before the first colon of the reason is its kind."""

    path: str
    reason: str


class Sample(NamedTuple):
    """A picture that can be trained on."""

    id: str
    caption: Caption
    width: int  # width of the upright picture in the file
    height: int
    notes: list[str]
    sha256: str  # hash of the prepared pixels
    stored: list[int]  # height and width of the prepared pixels


class Scan:
    """Samples with their prepared pixels, and the pictures that were left out.

    Args:
        size: Size of the examples; prepared pixels may be larger.
    """

    def __init__(self, size: Size) -> None:
        self.size = size
        self.samples: list[Sample] = []
        self.skipped: list[Skipped] = []
        self._places: list[tuple[int, int]] = []  # part, first byte
        self._parts: list[UInt8[Tensor, "N"]] = []

    def pixels(self, index: int) -> UInt8[Tensor, "C H W"]:
        """Return the prepared pixels of a sample: a view, not to be written to."""
        part, start = self._places[index]
        height, width = self.samples[index].stored
        return self._parts[part][start : start + 3 * height * width].view(3, height, width)

    def only(self, wanted: Callable[[Sample], bool]) -> "Scan":
        """Return a scan of the wanted samples only, with the same list of skipped pictures."""
        part = Scan(self.size)
        kept = [n for n, sample in enumerate(self.samples) if wanted(sample)]
        part.samples = [self.samples[n] for n in kept]
        part.skipped, part._parts = self.skipped, self._parts
        part._places = [self._places[n] for n in kept]
        return part

    def add(
        self, samples: Iterable[Sample], skipped: Iterable[Skipped], pixels: UInt8[Tensor, "N"]
    ) -> None:
        """Append a part, whose pixels are in the order of the samples."""
        start = 0
        for sample in samples:
            self.samples.append(sample)
            self._places.append((len(self._parts), start))
            start += 3 * sample.stored[0] * sample.stored[1]
        self.skipped += skipped
        self._parts.append(pixels)


class _Named(NamedTuple):
    """A picture with the hash of its file and a mended caption."""

    picture: Found
    sha256: str  # hash of the file
    notes: list[str]


class _Passing(Skipped):
    """A picture that is left out now, to be tried again the next time."""


class Prepared(NamedTuple):
    """A picture that can be trained on, with its pixels, one channel after the other."""

    sample: Sample
    pixels: bytes


def scan(
    pictures: Iterable[Found | Skipped],
    view: View,
    *,
    limit: int | None = None,
    workers: int = 2,
) -> Scan:
    """Decode pictures; collect those that can be trained on, and the others with the reason.

    Args:
        pictures: Iterated once, their order is kept; at most `PART_BYTES` of bytes are held.
        view: How pictures are fitted to the size of the examples. Pixels are stored in that size,
            or, where a visit draws its window, in the size that covers it.
        limit: Stop after this many samples; None uses all.
        workers: Number of threads that decode; does not change the result.
    """
    result = Scan(view.size)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        with quiet():
            for part in _parts(pictures, min(limit or PART_LENGTH, PART_LENGTH)):
                samples, skipped, pixels = _scan_part(part, view, pool.map)
                left = None if limit is None else limit - len(result.samples)
                result.add(samples[:left], skipped, pixels)
                if len(result.samples) == limit:
                    break
    finally:
        pool.shutdown(cancel_futures=True)
    return result


def prepare(picture: Found | Skipped, view: View) -> Prepared | Skipped:
    """Prepare one picture as `scan` does; return it, or why it is left out."""
    return _prepare(_name(picture), view)


def _parts(pictures: Iterable[Found | Skipped], length: int) -> Iterator[list[Found | Skipped]]:
    part: list[Found | Skipped] = []
    held = 0
    for picture in pictures:
        part.append(picture)
        if isinstance(picture, Found) and isinstance(picture.source, bytes):
            held += len(picture.source)
        if len(part) == length or held > PART_BYTES:
            yield part
            part, held = [], 0
    if part:
        yield part


def _scan_part(
    part: list[Found | Skipped], view: View, map_: Map
) -> tuple[list[Sample], list[Skipped], UInt8[Tensor, "N"]]:
    """Return samples, skipped pictures and pixels of a part, from the cache if they are in it."""
    named: list[_Named | Skipped] = list(map_(_name, part))
    key = _key(named, view)
    if (entry := read_entry(key)) is None:
        about, content = _prepare_part(named, view, map_)
        if not any(isinstance(item, _Passing) for item in about["skipped"]):
            write_entry(key, about, content)
        # A cached entry is mapped from its file, which frees the memory.
        entry = read_entry(key) or (about, torch.frombuffer(content, dtype=torch.uint8))
    about, pixels = entry
    samples = [Sample(*row) for row in about["samples"]]
    return samples, [Skipped(*row) for row in about["skipped"]], pixels


def _prepare_part(
    named: list[_Named | Skipped], view: View, map_: Map
) -> tuple[dict[str, Any], bytearray]:
    prepared = list(map_(lambda picture: _prepare(picture, view), named))
    usable = [item for item in prepared if isinstance(item, Prepared)]
    about = {
        "samples": [item.sample for item in usable],
        "skipped": [item for item in prepared if isinstance(item, Skipped)],
    }
    return about, bytearray(b"".join(item.pixels for item in usable) or b"\0")  # never empty


def _key(named: list[_Named | Skipped], view: View) -> str:
    rows = [
        [item.picture.id, item.picture.caption, item.sha256] if isinstance(item, _Named) else item
        for item in named
    ]
    how = [view.size, view.fit, view.draws_window, view.max_value]
    about = json.dumps([SCHEMA, PIL.__version__, how, rows])
    return hashlib.sha256(about.encode()).hexdigest()


def _name(picture: Found | Skipped) -> _Named | Skipped:
    if isinstance(picture, Skipped):
        return picture
    try:
        caption, notes = check_caption(picture.caption)
        if picture.source is None:
            raise UnusablePictureError("missing or not a file")
        return _Named(picture._replace(caption=caption), picture_sha256(picture.source), notes)
    except UnusablePictureError as error:
        return Skipped(picture.id, str(error))


def check_caption(caption: Caption) -> tuple[Caption, list[str]]:
    """Mend a caption; return it with notes on what was found.

    Raises:
        UnusablePictureError: there is no caption, or it is too long.
    """
    texts = [caption] if isinstance(caption, str) else caption
    if any(len(text) > MAX_CAPTION_LENGTH for text in texts):
        raise UnusablePictureError(f"with a caption over {MAX_CAPTION_LENGTH} characters")
    mended, notes = mend_caption(caption)
    if not mended:
        raise UnusablePictureError("without caption")
    return mended, notes


def load_usable(source: Path | bytes, view: View, sha256: str | None = None) -> Picture:
    """Read a picture and fit it to the view's size; a window that is drawn later is not yet cut.

    Raises:
        UnusablePictureError: the picture is smaller than the size; or see `load_picture`.
    """
    picture = load_picture(source, view.size, sha256, fit=view.fit, max_value=view.max_value)
    if not is_large_enough((picture.width, picture.height), view.size, view.fit):
        found = f"{picture.width}x{picture.height}"
        raise UnusablePictureError(f"smaller than size={_shown_size(view)}: {found}")
    if view.draws_window:
        return picture
    frame = center_crop if view.fit == "crop" else pad
    return picture._replace(image=frame(picture.image, view.size))


def _shown_size(view: View) -> str:
    height, width = view.size
    return str(height) if height == width else f"[{height}, {width}]"


def _prepare(named: _Named | Skipped, view: View) -> Prepared | Skipped:
    if isinstance(named, Skipped):
        return named
    found, sha256, notes = named
    assert found.source is not None
    try:
        picture = load_usable(found.source, view, sha256)
    except PassingFaultError as error:
        return _Passing(found.id, str(error))
    except UnusablePictureError as error:
        return Skipped(found.id, str(error))
    image = picture.image
    pixels = b"".join(band.tobytes() for band in image.split())
    stored = [image.height, image.width]
    digest = hashlib.sha256(repr(stored).encode() + pixels).hexdigest()
    notes = [*notes, *picture.notes]
    width, height = picture.width, picture.height
    return Prepared(Sample(found.id, found.caption, width, height, notes, digest, stored), pixels)
