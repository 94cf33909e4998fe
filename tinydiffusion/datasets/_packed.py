"""Captioned pictures, decoded once and kept in memory as packed uint8."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from tinydiffusion.datasets._captions import Caption
from tinydiffusion.datasets._pictures import (
    UnusablePictureError,
    center_crop,
    load_picture,
    resize_shorter_side,
)
from tinydiffusion.protocols import Example

MAX_CAPTION_LENGTH = 10_000  # characters; what is longer is not a caption
CROPS = ("center", "random")


class Found(NamedTuple):
    """A captioned picture yet to be decoded."""

    id: str
    source: Path | bytes | None  # None where the data set has a row but no picture
    caption: Caption


class Skipped(NamedTuple):
    """A picture that is left out; the reason's kind stands before its first colon."""

    path: str
    reason: str


class PackedDataset:
    """Captioned pictures in memory; what the data sets that read files have in common.

    All pixels lie in one uint8 buffer. With crop "center" they are squares; with "random" only
    the shorter side is cut to `size` and the window is drawn at each visit.

    Args:
        pictures: What was found, in the order wanted.
        total: How many that is.
        name: The data set's name for messages.
        size: Width and height of every example, in pixels.
        crop: "center", or "random" for a window drawn at each visit.
        flip: Whether a visit mirrors the picture left to right with probability 1/2.
        limit: Stop after this many usable pictures; None takes all.

    Raises:
        ValueError: an option out of range, no usable picture, or more than half skipped.
    """

    def __init__(
        self,
        pictures: Iterable[Found | Skipped],
        *,
        total: int,
        name: str,
        size: int,
        crop: str,
        flip: bool,
        limit: int | None,
    ) -> None:
        _check_options(size, crop, limit)
        self.size, self.crop, self.flip = size, crop, flip
        self.skipped: list[Skipped] = []
        self._ids: list[str] = []
        self._captions: list[Caption] = []
        self._spans: list[tuple[int, int, int]] = []  # first byte, height, width
        buffer = self._fill(pictures, limit)
        if not self._ids or 2 * len(self.skipped) > total:
            raise ValueError(
                f"{name}: {len(self.skipped)} of {total} pictures cannot be used, at most half "
                f"may be; mend or remove them: {describe(self.skipped)}"
            )
        self._buffer = torch.frombuffer(buffer, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Example:
        """The example with its middle square, not mirrored."""
        pixels = self._pixels(index)
        top, left = ((side - self.size) // 2 for side in pixels.shape[1:])
        return self._example(index, pixels, top, left)

    def augment(self, index: int, generator: torch.Generator) -> Example:
        """The example as one visit sees it: window and mirroring drawn from `generator`."""
        if self.crop == "center":
            example = self[index]
        else:
            pixels = self._pixels(index)
            top, left = (_draw(side - self.size + 1, generator) for side in pixels.shape[1:])
            example = self._example(index, pixels, top, left)
        if self.flip and _draw(2, generator):
            example["image"] = example["image"].flip(-1)
        return example

    def describe_skipped(self) -> str:
        """How many pictures were left out for which reason; empty where none was."""
        return describe(self.skipped)

    def _fill(self, pictures: Iterable[Found | Skipped], limit: int | None) -> bytearray:
        buffer = bytearray()  # grows in place: the pixels are never held twice
        for picture in pictures:
            if isinstance(picture, Skipped):
                self.skipped.append(picture)
                continue
            try:
                pixels, height, width = _prepare(picture, self.size, self.crop)
            except UnusablePictureError as error:
                self.skipped.append(Skipped(picture.id, str(error)))
                continue
            self._spans.append((len(buffer), height, width))
            buffer += pixels
            self._ids.append(picture.id)
            self._captions.append(picture.caption)
            if len(self) == limit:
                break
        return buffer

    def _pixels(self, index: int) -> UInt8[Tensor, "C H W"]:
        start, height, width = self._spans[index]
        return self._buffer[start : start + 3 * height * width].view(3, height, width)

    def _example(self, index: int, pixels: UInt8[Tensor, "C H W"], top: int, left: int) -> Example:
        window = pixels[:, top : top + self.size, left : left + self.size]
        # A copy: who changes an example must not change the data set.
        return Example(image=window.clone(), caption=self._captions[index], id=self._ids[index])


def describe(skipped: list[Skipped]) -> str:
    """How many pictures were skipped for which reason, each with its first case."""
    kinds: dict[str, list[Skipped]] = {}
    for item in skipped:
        kinds.setdefault(item.reason.partition(":")[0], []).append(item)
    return "; ".join(
        f"{len(items)} {kind} (first {items[0].path}{items[0].reason[len(kind) :]})"
        for kind, items in kinds.items()
    )


def _prepare(picture: Found, size: int, crop: str) -> tuple[bytes, int, int]:
    """The pixels as stored, channels first, with their height and width."""
    texts = [picture.caption] if isinstance(picture.caption, str) else picture.caption
    if not any(texts):
        raise UnusablePictureError("without caption")
    if max(map(len, texts)) > MAX_CAPTION_LENGTH:
        raise UnusablePictureError(f"with a caption over {MAX_CAPTION_LENGTH} characters")
    if picture.source is None:
        raise UnusablePictureError("missing or not a file")
    image = load_picture(picture.source, shorter_side=size)
    if min(image.size) < size:
        raise UnusablePictureError(f"smaller than size={size}: {image.width}x{image.height}")
    image = resize_shorter_side(image, size)
    if crop == "center":
        image = center_crop(image, size)
    planes = b"".join(band.tobytes() for band in image.split())
    return planes, image.height, image.width


def _check_options(size: int, crop: str, limit: int | None) -> None:
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if crop not in CROPS:
        raise ValueError(f"crop must be one of {', '.join(CROPS)}, got {crop!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, or null for all, got {limit}")


def _draw(high: int, generator: torch.Generator) -> int:
    """An integer in [0, high)."""
    return int(torch.randint(high, (), generator=generator))
