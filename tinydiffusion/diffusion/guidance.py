"""Classifier-free guidance."""

from jaxtyping import Float
from torch import Tensor


def guide(
    conditional: Float[Tensor, "B C H W"],
    unconditional: Float[Tensor, "B C H W"],
    guidance_scale: float,
    guidance_rescale: float = 0.0,
) -> Float[Tensor, "B C H W"]:
    """The x_0 prediction moved away from the unconditional one.

    Ho & Salimans (2022), eq. 6, https://arxiv.org/abs/2207.12598, with a scale of 1 for "off".

    Args:
        conditional: x_0 predicted with the prompt.
        unconditional: x_0 predicted with the empty (or negative) prompt.
        guidance_scale: 1 returns the conditional prediction; more follows the prompt closer.
        guidance_rescale: Share in [0, 1] of the correction that gives each picture the standard
            deviation it had before guidance, Lin et al. (2023) eq. 14-16,
            https://arxiv.org/abs/2305.08891.
    """
    guided = unconditional + guidance_scale * (conditional - unconditional)
    if guidance_rescale == 0:
        return guided
    per_picture = (1, 2, 3)
    before = conditional.std(per_picture, keepdim=True)
    after = guided.std(per_picture, keepdim=True).clamp_min(1e-8)  # a flat picture has none
    rescaled = guided * before / after  # eq. 15
    return guidance_rescale * rescaled + (1 - guidance_rescale) * guided  # eq. 16
