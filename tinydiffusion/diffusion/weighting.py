"""Which noise levels training looks at, and how much each counts."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tinydiffusion.diffusion.prediction import x_0_sensitivity
from tinydiffusion.registry import suggest

WEIGHTINGS = ["none", "min_snr", "edm", "velocity"]
DENSITIES = ["uniform", "logit_normal"]
MAX_LOGIT = 20  # sigmoid(20) is 1 in float32
GOLDEN_RATIO = 0x9E3779B97F4A7C15  # (sqrt(5) - 1) / 2 in units of 2**-64
BELOW_ONE = 1 - 2**-53  # the largest float64 that is
MIN_NOISE = 0.1  # below it the velocity's weight grows no more


def loss_weights(
    weighting: str,
    prediction_type: str,
    a: Float[Tensor, "#B 1 1 1"],
    s: Float[Tensor, "#B 1 1 1"],
    *,
    gamma: float = 5.0,
    sigma_data: float = 0.5,
) -> Float[Tensor, "#B 1 1 1"]:
    """The factor of each picture's squared error between network output and training target.

    A weighting is defined once, for the error of x_0; the squared derivative of x_0 by the output
    turns it into the factor for any prediction type.

    Args:
        weighting: "none" (1 for every picture), "min_snr" (Hang et al. 2023, eq. 4,
            https://arxiv.org/abs/2303.09556), "edm" (Karras et al. 2022, table 1,
            https://arxiv.org/abs/2206.00364) or "velocity": the error of noise - x_0, whatever
            is predicted (Li & He 2025, https://arxiv.org/abs/2511.13720), but for the last
            clean tenth of the noise levels, s < 0.1, where it would grow without bound.
        prediction_type: As in `prediction.training_target`.
        a: Signal factor.
        s: Noise factor.
        gamma: Where "min_snr" caps the signal-to-noise ratio, above 0.
        sigma_data: Standard deviation of the pictures, for "edm", in [0.001, 1000].

    Raises:
        ValueError: an unknown weighting or prediction type, or a number out of its range.
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be above 0, got {gamma}")
    if not 1e-3 <= sigma_data <= 1e3:
        raise ValueError(f"sigma_data must be in [0.001, 1000], got {sigma_data}")
    sensitivity = x_0_sensitivity(prediction_type, a, s)
    if weighting == "none":
        return torch.ones_like(sensitivity)
    if weighting == "min_snr":
        x_0_weight = ((a / s) ** 2).clamp_max(gamma)  # a cap from above: min(SNR, gamma)
    elif weighting == "edm":
        sigma = s / a
        x_0_weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    elif weighting == "velocity":
        x_0_weight = ((a + s) / s.clamp_min(MIN_NOISE)) ** 2  # v = x_t / s - x_0 (a + s) / s
    else:
        raise ValueError(_unknown("weighting", weighting, WEIGHTINGS))
    return x_0_weight * sensitivity**2


def timesteps_of(
    u: Float[Tensor, "B"],
    density: str,
    num_train_timesteps: int,
    *,
    mean: float = 0.0,
    std: float = 1.0,
) -> Int[Tensor, "B"]:
    """Training timesteps in [0, T-1]: the quantiles u of a density over t = timestep / T.

    Args:
        u: In [0, 1), float64; uniform ones give timesteps of that density.
        density: "uniform", or "logit_normal" (Esser et al. 2024, eq. 19,
            https://arxiv.org/abs/2403.03206).
        num_train_timesteps: T.
        mean: Of the logit of t, in [-20, 20]; above 0 prefers noisier pictures.
        std: Of the logit of t, in (0, 20].

    Raises:
        ValueError: an unknown density, or a number out of its range.
    """
    if density not in DENSITIES:
        raise ValueError(_unknown("time density", density, DENSITIES))
    if not 0 < std <= MAX_LOGIT:
        raise ValueError(f"std of the time density must be in (0, {MAX_LOGIT}], got {std}")
    if not -MAX_LOGIT <= mean <= MAX_LOGIT:
        raise ValueError(
            f"mean of the time density must be in [-{MAX_LOGIT}, {MAX_LOGIT}], got {mean}"
        )
    if density == "logit_normal":
        u = torch.sigmoid(mean + std * torch.special.ndtri(u))  # inverse distribution function
    return (u * num_train_timesteps).long().clamp_max(num_train_timesteps - 1)


def spread_evenly(positions: Sequence[int]) -> Float[Tensor, "B"]:
    """Numbers in [0, 1) of which any N at consecutive positions lie about 1/N apart.

    Position times the golden ratio, modulo 1: the sequence whose points are spread most evenly
    (Niederreiter 1992, Random Number Generation and Quasi-Monte Carlo Methods, section 3.1). A
    batch, however it is cut into parts, then sees every noise level, and its loss is less noisy
    than with independent numbers.

    Args:
        positions: From 0 on, of any size.
    """
    fractions = [position * GOLDEN_RATIO % 2**64 / 2**64 for position in positions]
    return torch.tensor(fractions, dtype=torch.float64).clamp_max(BELOW_ONE)


def _unknown(what: str, name: str, known: list[str]) -> str:
    return f"unknown {what} {name!r}{suggest(name, known)}; there are {', '.join(known)}"
