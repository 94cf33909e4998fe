"""Heun's method on the probability flow, Karras et al. (2022).

https://arxiv.org/abs/2206.00364
"""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from tinydiffusion.protocols import Denoise, Generators
from tinydiffusion.samplers._check import check_sigmas

PURE_NOISE = 80.0  # the paper's largest level, table 1: beyond it a picture leaves no trace


def sample_heun(
    denoise: Denoise,
    x: Float[Tensor, "B C H W"],
    sigmas: Float[Tensor, "S_plus_1"],
    *,
    generators: Generators,  # noqa: ARG001 - nothing is random here
) -> Float[Tensor, "B C H W"]:
    """Pictures from steps along the mean slope of both ends; second order, 2 S - 1 evaluations.

    Algorithm 1 of the paper. From above `PURE_NOISE` it takes Euler's step, with one evaluation:
    the correction grows with sigma / sigma_next, and from there it would multiply the
    denoiser's error by 25 in the first of 20 steps.

    Raises:
        ValueError: sigmas that do not fall to 0.
    """
    check_sigmas(sigmas)
    for sigma, sigma_next in pairwise(sigmas):
        x_0 = denoise(x, sigma)
        x_next = x_0 + sigma_next / sigma * (x - x_0)  # Euler's step, lines 4 and 5
        if sigma_next > 0 and sigma <= PURE_NOISE:
            slope = (x - x_0) / sigma
            slope_next = (x_next - denoise(x_next, sigma_next)) / sigma_next  # line 7
            x_next = x_next + (sigma_next - sigma) * (slope_next - slope) / 2  # line 8
        x = x_next
    return x


PLUGIN = sample_heun
