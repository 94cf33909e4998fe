"""DPM-Solver++(2M), Lu et al. (2022).

https://arxiv.org/abs/2211.01095
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from tinydiffusion.protocols import Denoise, Generators
from tinydiffusion.samplers._check import check_sigmas


def sample_dpmpp_2m(
    denoise: Denoise,
    x: Float[Tensor, "B C H W"],
    sigmas: Float[Tensor, "S_plus_1"],
    *,
    generators: Generators,  # noqa: ARG001 - nothing is random here
) -> Float[Tensor, "B C H W"]:
    """Pictures from steps in log sigma that extrapolate x_0 from the step before.

    Algorithm 2 of the paper, second order at one evaluation per step; its h is the fall of
    log sigma. The first step and the last, to sigma 0, are of first order.

    Raises:
        ValueError: sigmas that do not fall to 0.
    """
    check_sigmas(sigmas)
    x_0_before, h_before = x, torch.inf  # no step before the first: nothing to extrapolate from
    for sigma, sigma_next in pairwise(sigmas):
        x_0 = denoise(x, sigma)
        ahead = x_0
        if sigma_next > 0:
            h = (sigma / sigma_next).log()
            ahead = x_0 + h / (2 * h_before) * (x_0 - x_0_before)  # line 8, r = h_before / h
            x_0_before, h_before = x_0, h
        x = ahead + sigma_next / sigma * (x - ahead)  # line 9
    return x


PLUGIN = sample_dpmpp_2m
