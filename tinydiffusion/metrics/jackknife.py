"""Intervals of statistics other than plain means, such as U-statistics."""

import math

from jaxtyping import Float
from torch import Tensor

from tinydiffusion.metrics.statistics import Z_95


def jackknife_interval(value: float, *left_out: Float[Tensor, "..."]) -> tuple[float, float]:
    """Compute the 95 % interval of a statistic of one or several independent samples.

    Efron and Stein (1981), eq. 1.4, https://doi.org/10.1214/aos/1176345462, with the Normal
    distribution.

    Args:
        value: The statistic of all the data.
        left_out: For each sample, the statistic with each of its members left out in turn.
    """
    half = Z_95 * math.sqrt(sum(_variance(values) for values in left_out))
    return value - half, value + half


def _variance(values: Float[Tensor, "N"]) -> float:
    n = len(values)
    return (n - 1) / n * (values - values.mean()).square().sum().item()
