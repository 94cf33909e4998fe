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
        x, std = transition(x, denoise(x, sigma), sigma, sigma_next)
        if sigma_next > 0:
            x = x + std * randn(x.shape, generators, dtype=x.dtype, device=x.device)
    return x


def transition(
    x: Float[Tensor, "B C H W"],
    x_0: Float[Tensor, "B C H W"],
    sigma: Float[Tensor, ""],
    sigma_next: Float[Tensor, ""],
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, ""]]:
    """Compute the normal distribution that one step draws from, eq. 7 of the paper.

    Args:
        x: Noisy pictures at `sigma`.
        x_0: The clean pictures that the model sees in them.
        sigma: Noise level, above 0.
        sigma_next: The next one, from 0 up to `sigma`.

    Returns:
        Mean of the pictures at `sigma_next`, and standard deviation of each of their values.
    """
    kept = (sigma_next / sigma) ** 2  # share of the noise's variance that stays
    return x_0 + kept * (x - x_0), sigma_next * (1 - kept).sqrt()


PLUGIN = sample_ddpm
