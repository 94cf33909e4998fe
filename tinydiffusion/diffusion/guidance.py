"""Classifier-free guidance."""

from jaxtyping import Float
from torch import Tensor

Interval = tuple[float, float]
"""Noise levels sigma (noise / signal): above the first, up to and with the second."""

MAX_SIGMA = 10_000.0
"""Above every noise level of every schedule."""


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


def is_guided(sigma: Float[Tensor, ""], guidance_interval: Interval | None) -> bool:
    """Return whether guidance is applied at a noise level.

    Kynkäänniemi et al. (2024), eq. 6, https://arxiv.org/abs/2404.07724. They move the bounds to
    steps of the sampler; here each evaluation is asked for by itself, so that a step of a second
    order (heun, dpmpp_2m) over a bound is guided in part.

    Args:
        sigma: Noise / signal.
        guidance_interval: See `check_guidance_interval`; None = everywhere.
    """
    return guidance_interval is None or bool(guidance_interval[0] < sigma <= guidance_interval[1])


def check_guidance_interval(guidance_interval: Interval | None) -> None:
    """Raise ValueError where this is no interval of noise levels."""
    if guidance_interval is None:
        return
    low, high = guidance_interval
    if not 0 <= low < high <= MAX_SIGMA:  # NaN is not
        raise ValueError(
            "guidance_interval must be two noise levels sigma (noise / signal) with "
            f"0 <= low < high <= {MAX_SIGMA:g}, got {low:g} and {high:g}; 0 and {MAX_SIGMA:g} is "
            "everywhere"
        )
