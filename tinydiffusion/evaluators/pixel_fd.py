"""Fréchet distance on small pictures: needs no weights, compares layout and colour only."""

from tinydiffusion.metrics.features import shared_extractor
from tinydiffusion.metrics.frechet import FrechetEvaluator


class PixelFD(FrechetEvaluator):
    """Fréchet distance between generated and reference pictures averaged to size x size pixels.

    Values are in [0, 1] per pixel; 0 is best. Not a FID: it sees no texture and no objects.

    Args:
        size: Side of the grid that pictures are averaged to, in [1, 32].
    """

    def __init__(self, *, size: int = 8) -> None:
        if not 1 <= size <= 32:  # the covariance has (3 size²)² entries
            raise ValueError(f"size must be in [1, 32], got {size}")
        super().__init__("pixel_fd", shared_extractor("pixels", size=size))


PLUGIN = PixelFD
