"""Fréchet inception distance, TF1-compatible: the number that papers print."""

from tinydiffusion.metrics.fid import InceptionDistance, Layer


class FID(InceptionDistance):
    """Fréchet inception distance between generated and reference pictures; 0 is best.

    With the original network and its TF1 resize, so that the value equals torch-fidelity's.

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
        super().__init__("fid", "tf1", weights, allow_unverified, layer)


PLUGIN = FID
