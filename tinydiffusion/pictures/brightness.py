"""Mean brightness of a set of pictures: nothing can be learned from a black or white set."""

import math

from jaxtyping import UInt8
from torch import Tensor

BLACK, WHITE = 5.0, 250.0  # mean levels, in [0, 255]
LITTLE = 10.0  # standard deviation of all levels; that of thin lines on white is higher


class Brightness:
    """Mean and variation of the levels of many pictures."""

    def __init__(self) -> None:
        self._count, self._sum, self._squares = 0, 0.0, 0.0

    def add(self, image: UInt8[Tensor, "C H W"]) -> None:
        """Add a picture; of a large one, every fourth row and column is enough."""
        step = 4 if min(image.shape[1:]) >= 64 else 1
        levels = image[:, ::step, ::step].double()
        self._count += levels.numel()
        self._sum += float(levels.sum())
        self._squares += float(levels.square().sum())

    def describe(self) -> str:
        """Return a warning if the pictures are nearly all black or white, else empty text."""
        if not self._count:
            return ""
        mean = self._sum / self._count
        deviation = math.sqrt(max(0.0, self._squares / self._count - mean**2))
        if BLACK <= mean <= WHITE or deviation >= LITTLE:
            return ""
        shade = "black" if mean < BLACK else "white"
        return (
            f"the pictures are nearly {shade} as a whole: mean level {mean:.1f} of 255, standard "
            f"deviation {deviation:.1f}; look at them, and for files of more than 8 bits set "
            "dataset.max_value to the value that means white"
        )
