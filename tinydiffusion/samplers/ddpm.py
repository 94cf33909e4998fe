"""Ancestral sampling, Ho et al. (2020).

https://arxiv.org/abs/2006.11239
"""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from tinydiffusion.diffusion.noise import randn
from tinydiffusion.protocols import Denoise, Generators
from tinydiffusion.samplers._check import check_sigmas


def sample_ddpm(
    denoise: Denoise,
    x: Float[Tensor, "B C H W"],
    sigmas: Float[Tensor, "S_plus_1"],
    *,
    generators: Generators,
) -> Float[Tensor, "B C H W"]:
    """Pictures drawn step by step from the posterior q(x' | x, x_0).

    Algorithm 2 of the paper with its smaller variance ("fixed_small" in diffusers), divided by the
    signal factor. Wants many steps: the variance of the pictures comes out too small with few.

    Raises:
        ValueError: sigmas that do not fall to 0, or not one generator per picture.
    """
    check_sigmas(sigmas)
    for sigma, sigma_next in pairwise(sigmas):
        x_0 = denoise(x, sigma)
        kept = (sigma_next / sigma) ** 2  # share of the noise's variance that stays
        x = x_0 + kept * (x - x_0)  # eq. 7, mean
        if sigma_next > 0:
            noise = randn(x.shape, generators, dtype=x.dtype, device=x.device)
            x = x + sigma_next * (1 - kept).sqrt() * noise  # eq. 7, variance
    return x


PLUGIN = sample_ddpm
