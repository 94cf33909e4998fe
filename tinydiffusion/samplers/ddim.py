"""Denoising diffusion implicit models, Song et al. (2021).

https://arxiv.org/abs/2010.02502
"""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from tinydiffusion.diffusion.noise import randn
from tinydiffusion.protocols import Denoise, Generators
from tinydiffusion.samplers._check import check_sigmas


def sample_ddim(
    denoise: Denoise,
    x: Float[Tensor, "B C H W"],
    sigmas: Float[Tensor, "S_plus_1"],
    *,
    generators: Generators,
    eta: float = 0.0,
) -> Float[Tensor, "B C H W"]:
    """Pictures of which a chosen part of the noise is drawn anew at each step.

    Eq. 12 and 16 of the paper divided by the signal factor.

    Args:
        denoise: See `protocols.Denoise`.
        x: Noise of standard deviation sigmas[0].
        sigmas: Falling to 0, shape (S+1,).
        generators: One per picture.
        eta: In [0, 1]. 0 draws nothing and is Euler's method; 1 is ancestral sampling.

    Raises:
        ValueError: sigmas that do not fall to 0, eta outside [0, 1], or not one generator per
            picture.
    """
    check_sigmas(sigmas)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    for sigma, sigma_next in pairwise(sigmas):
        x, std = transition(x, denoise(x, sigma), sigma, sigma_next, eta=eta)
        if std > 0:
            x = x + std * randn(x.shape, generators, dtype=x.dtype, device=x.device)
    return x


def transition(
    x: Float[Tensor, "B C H W"],
    x_0: Float[Tensor, "B C H W"],
    sigma: Float[Tensor, ""],
    sigma_next: Float[Tensor, ""],
    *,
    eta: float,
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, ""]]:
    """Compute the normal distribution that one step draws from.

    Args:
        x: Noisy pictures at `sigma`.
        x_0: The clean pictures that the model sees in them.
        sigma: Noise level, above 0.
        sigma_next: The next one, from 0 up to `sigma`.
        eta: See `sample_ddim`; with 0 the standard deviation is 0.

    Returns:
        Mean of the pictures at `sigma_next`, and standard deviation of each of their values.
    """
    fresh = eta * sigma_next * (1 - (sigma_next / sigma) ** 2).sqrt()  # eq. 16
    kept = (sigma_next**2 - fresh**2).sqrt()
    return x_0 + kept / sigma * (x - x_0), fresh  # eq. 12


PLUGIN = sample_ddim
