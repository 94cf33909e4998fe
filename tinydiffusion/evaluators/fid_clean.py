"""Fréchet inception distance with clean-fid's resize: the same at any picture size."""

from tinydiffusion.metrics.fid import InceptionDistance, Layer


class CleanFID(InceptionDistance):
    """Fréchet inception distance after an antialiased resize; 0 is best.

    Parmar et al. (2022), https://arxiv.org/abs/2104.11222: the value equals clean-fid's.

    Args:
        weights: Inception weights file; None downloads the genuine one once.
        allow_unverified: Accept another file than the genuine one, and flag the score.
        layer: Where the features are taken; only 2048 is the metric of the papers.

    Raises:
        ValueError: the weights are missing or are not the genuine ones.
    """

    def __init__(
        self,
        *,
        weights: str | None = None,
        allow_unverified: bool = False,
        layer: Layer = 2048,
    ) -> None:
        super().__init__("fid_clean", "clean", weights, allow_unverified, layer)


PLUGIN = CleanFID
