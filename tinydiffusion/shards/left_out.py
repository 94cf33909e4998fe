"""Pictures that prove unusable when they are visited: they are named, counted and left out."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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

MAX_NAMED = 20  # pictures that a process warns of; further ones are only counted


class LeftOut:
    """The pictures that a data set has left out so far, each counted and named once.

    Args:
        skipped: Pictures left out before; unusable pictures are appended.
    """

    def __init__(self, skipped: list[Skipped]) -> None:
        self.skipped = skipped
        self._unusable: set[str] = set()

    def describe(self) -> str:
        """Return the number of pictures left out for each reason; empty where none was."""
        return describe(self.skipped)

    @contextmanager
    def noting(self, name: str) -> Iterator[None]:
        """Count a picture that proves unusable inside the `with`, and add its name to the error.

        Raises:
            UnusablePictureError: in place of the one that was raised, with the name.
        """
        try:
            yield
        except PassingFaultError:
            raise
        except UnusablePictureError as error:
            self._note(Skipped(name, str(error)))
            raise UnusablePictureError(f"{name}: {error}") from error

    def _note(self, item: Skipped) -> None:
        if item.path in self._unusable:
            return
        self._unusable.add(item.path)
        self.skipped.append(item)
        if len(self._unusable) <= MAX_NAMED:
            more = "; further ones are counted only" if len(self._unusable) == MAX_NAMED else ""
            warnings.warn(f"{item.path}: {item.reason}; left out{more}", stacklevel=3)


def load_example(id_: str, source: Path | bytes, caption: Caption, view: View) -> Example:
    """Read a captioned picture; a window that a visit draws is not yet cut.

    A guess about the range of its values causes a warning, with the same text for all pictures.

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
