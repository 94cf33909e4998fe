"""Fréchet distance in DINOv2's features, which were not made for the classes of ImageNet."""

from tinydiffusion.metrics.features import shared_extractor
from tinydiffusion.metrics.frechet import FrechetEvaluator


class DINOv2Distance(FrechetEvaluator):
    """Fréchet distance between generated and reference pictures seen by DINOv2; 0 is best.

    Stein et al. (2023), https://arxiv.org/abs/2306.04675: the class token of the largest model
    that has weights, usually ViT-L/14 (1024 features).

    Args:
        weights: DINOv2's weights, in the layout of torch.hub or of timm.
        model: timm's name of the architecture.

    Raises:
        ValueError: the weights are missing or do not belong to the architecture.
    """

    def __init__(self, *, weights: str, model: str = "vit_large_patch14_dinov2") -> None:
        super().__init__("fd_dinov2", shared_extractor("dinov2", weights=weights, model=model))


PLUGIN = DINOv2Distance
