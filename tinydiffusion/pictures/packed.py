"""Captioned pictures, decoded once and kept as packed uint8."""

import copy
import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor

from tinydiffusion.abilities import Augmented, Captioned, Divisible, Fingerprinted, Selective
from tinydiffusion.pictures.captions import shown
from tinydiffusion.pictures.depth import about_depth
from tinydiffusion.pictures.scan import Found, Sample, Scan, Skipped, scan
from tinydiffusion.pictures.views import check_limit, drawn_window, middle_window, view_of
from tinydiffusion.protocols import Example


class TooManySkippedError(ValueError):
    """A data set of which more than half cannot be used, which is hardly intended."""

    def __init__(self, message: str, scan: Scan) -> None:
        super().__init__(message)
        self.scan = scan


class PackedDataset(Augmented, Captioned, Selective, Divisible, Fingerprinted):
    """Captioned pictures in memory: the common base of the data sets that read files.

    Pixels are packed uint8, in memory or mapped from the cache of earlier scans. They have the size
    of the examples; with crop "random" they cover it, and the window is drawn at each visit.
    `scan` has the findings about every picture.

    Args:
        pictures: Pictures in the order of the data set; iterated once.
        total: Number of pictures.
        name: Name of the data set for messages.
        size: See `view_of`.
        fit: See `view_of`.
        crop: See `view_of`.
        flip: See `view_of`.
        max_value: See `view_of`.
        limit: Stop after this many usable pictures; None uses all.
        workers: Number of threads that decode; does not change the examples.

    Raises:
        ValueError: an option is out of range, or no picture is usable.
        TooManySkippedError: more than half of the pictures are skipped.
    """

    def __init__(
        self,
        pictures: Iterable[Found | Skipped],
        *,
        total: int,
        name: str,
        size: int | Sequence[int],
        fit: str,
        crop: str,
        flip: bool,
        max_value: int | None,
        limit: int | None,
        workers: int = 2,
    ) -> None:
        self.view = view_of(size, fit=fit, crop=crop, flip=flip, max_value=max_value)
        check_limit(limit)
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.scan = scan(pictures, self.view, limit=limit, workers=workers)
        self.skipped = self.scan.skipped
        if not len(self) or 2 * len(self.skipped) > total:
            raise TooManySkippedError(
                f"{name}: {len(self.skipped)} of {total} pictures cannot be used, at most half "
                f"may be; mend or remove them: {describe(self.skipped)}",
                self.scan,
            )
        notes = Counter(n for sample in self.scan.samples for n in sample.notes if about_depth(n))
        for note, count in notes.most_common():
            warnings.warn(f"{name}: {count} of {len(self)} pictures: {note}", stacklevel=3)

    def __len__(self) -> int:
        return len(self.scan.samples)

    def __getitem__(self, index: int) -> Example:
        """Return the example with its middle window, not mirrored."""
        return self._example(index, middle_window(self.scan.pixels(index), self.view.size))

    def augment(self, index: int, generator: torch.Generator) -> Example:
        """Return the example for one visit: window and mirroring are drawn from `generator`."""
        pixels = self.scan.pixels(index)
        return self._example(index, drawn_window(pixels, self.view, generator))

    def divided(self, fraction: float) -> "tuple[PackedDataset, PackedDataset]":
        """Hold out about this fraction of the pictures, by the SHA-256 of their prepared pixels.

        Returns:
            The data set without the held-out pictures, and that of the held-out ones.

        Raises:
            ValueError: one side would be empty.
        """
        sides = copy.copy(self), copy.copy(self)
        for is_held_out, side in enumerate(sides):
            side.scan = self.scan.only(lambda s, k=is_held_out: _is_held_out(s, fraction) == k)
        if not all(map(len, sides)):
            raise ValueError(
                f"of {len(self)} pictures none are left on one side of fraction={fraction:g}; set "
                "another one, or give validation pictures of its own"
            )
        return sides

    def captions(self) -> list[str]:
        """Return every caption of every example."""
        given = [sample.caption for sample in self.scan.samples]
        lists = [[caption] if isinstance(caption, str) else caption for caption in given]
        return [caption for each in lists for caption in each]

    def describe_skipped(self) -> str:
        """Return the number of pictures left out for each reason; empty where none was."""
        return describe(self.skipped)

    def fingerprints(self) -> dict[str, str]:
        """Return example id -> SHA-256 of its captions and pixels, in the data set's order."""
        samples = self.scan.samples
        contents = {s.id: json.dumps([s.caption, s.sha256]).encode() for s in samples}
        return {id_: hashlib.sha256(content).hexdigest() for id_, content in contents.items()}

    def _example(self, index: int, image: UInt8[Tensor, "C H W"]) -> Example:
        sample = self.scan.samples[index]
        return Example(image=image, caption=sample.caption, id=sample.id)


def _is_held_out(sample: Sample, fraction: float) -> bool:
    """Return whether the digest's first 64 bits, as a number in [0, 1), are below `fraction`."""
    return int(sample.sha256[:16], 16) < fraction * 2**64


def describe(skipped: list[Skipped]) -> str:
    """Return the number of pictures skipped for each reason, with the first case of each."""
    kinds: dict[str, list[Skipped]] = {}
    for item in skipped:
        kinds.setdefault(item.reason.partition(":")[0], []).append(item)
    return "; ".join(
        shown(f"{len(items)} {kind} (first {items[0].path}{items[0].reason[len(kind) :]})")
        for kind, items in kinds.items()
    )
