"""Euler's method on the probability flow, Karras et al. (2022).

https://arxiv.org/abs/2206.00364
"""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from tinydiffusion.protocols import Denoise, Generators
from tinydiffusion.samplers._check import check_sigmas


def sample_euler(
    denoise: Denoise,
    x: Float[Tensor, "B C H W"],
    sigmas: Float[Tensor, "S_plus_1"],
    *,
    generators: Generators,  # noqa: ARG001 - nothing is random here
) -> Float[Tensor, "B C H W"]:
    """Pictures from straight steps along dx/dsigma = (x - x_0) / sigma; first order.

    Raises:
        ValueError: sigmas that do not fall to 0.
    """
    check_sigmas(sigmas)
    for sigma, sigma_next in pairwise(sigmas):
        x_0 = denoise(x, sigma)
        # x + (sigma_next - sigma) (x - x_0) / sigma, without its loss of digits at huge sigma
        x = x_0 + sigma_next / sigma * (x - x_0)
    return x


PLUGIN = sample_euler
