"""Fréchet inception distance with pytorch-fid's resize."""

from tinydiffusion.metrics.fid import InceptionDistance, Layer


class PytorchFID(InceptionDistance):
    """Fréchet inception distance after PyTorch's bilinear resize; 0 is best.

    The value equals that of pytorch-fid, https://github.com/mseitzer/pytorch-fid.

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
        super().__init__("fid_pt", "pytorch", weights, allow_unverified, layer)


PLUGIN = PytorchFID
