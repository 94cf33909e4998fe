"""What takes the place of pictures that prove unusable when they are visited."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from tinydiffusion.pictures.captions import Caption
from tinydiffusion.pictures.decode import PassingFaultError, UnusablePictureError
from tinydiffusion.pictures.depth import about_depth
from tinydiffusion.pictures.packed import describe
from tinydiffusion.pictures.scan import Skipped, check_caption, load_usable
from tinydiffusion.pictures.views import View
from tinydiffusion.protocols import Example

MAX_NAMED = 20  # pictures that a process warns of; further ones are counted


class StandIns:
    """The next usable picture for an unusable one, always the same; all are counted and named.

    Args:
        skipped: What was left out before, by the way; unusable pictures are added.
    """

    def __init__(self, skipped: list[Skipped]) -> None:
        self.skipped = skipped
        self._unusable: set[str] = set()

    def describe(self) -> str:
        """How many pictures were left out for which reason; empty where none was."""
        return describe(self.skipped)

    def usable(
        self, count: int, member: int, load: Callable[[int], Example], name: Callable[[int], str]
    ) -> Example:
        """The example `member` of `count` neighbours, or the next one that can be used.

        Args:
            count: How many neighbours there are.
            member: Which of them is wanted.
            load: The example of a neighbour; raises UnusablePictureError.
            name: What a neighbour is called.

        Raises:
            ValueError: none can be used, or the machine could not read one now.
        """
        reason = ""
        for number in (*range(member, count), *range(member)):
            try:
                example = load(number)
            except PassingFaultError:
                raise
            except UnusablePictureError as error:
                reason = str(error)
                self._note(Skipped(name(number), reason))
                continue
            if number != member:
                example["id"] += f" (for {name(member)})"
            return example
        raise ValueError(f"none of {count} pictures around {name(member)} can be used: {reason}")

    def _note(self, item: Skipped) -> None:
        """Count an unusable picture, and name it the first time."""
        if item.path in self._unusable:
            return
        self._unusable.add(item.path)
        self.skipped.append(item)
        if len(self._unusable) <= MAX_NAMED:
            more = "; further ones are counted only" if len(self._unusable) == MAX_NAMED else ""
            warnings.warn(f"{item.path}: {item.reason}; the next stands in{more}", stacklevel=2)


def load_example(id_: str, source: Path | bytes, caption: Caption, view: View) -> Example:
    """Read a captioned picture; a window that a visit draws is not yet cut.

    A guess about the range of its values is a warning, the same for all pictures.

    Raises:
        UnusablePictureError: there is no caption, or the picture is smaller or cannot be decoded.
    """
    caption, _ = check_caption(caption)
    picture = load_usable(source, view)
    for note in filter(about_depth, picture.notes):
        warnings.warn(f"pictures of this set: {note}", stacklevel=2)
    return Example(image=_planes(picture.image), caption=caption, id=id_)


def _planes(image: object) -> UInt8[Tensor, "C H W"]:
    return torch.from_numpy(np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)))
