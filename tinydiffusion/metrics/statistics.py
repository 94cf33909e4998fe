"""Moments, the Fréchet distance and confidence intervals, which several evaluators need."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Z_95 = 1.959963984540054
"""97.5 % quantile of the standard normal distribution."""

BLOCK = 256
"""Columns that are multiplied at once: few enough to leave zeros out, enough to be fast."""


class Moments(NamedTuple):
    """Count, sum and sum of outer products, all float64: two parts merge by adding them."""

    n: Float[Tensor, ""]
    total: Float[Tensor, "D"]
    outer: Float[Tensor, "D D"]

    @classmethod
    def zeros(cls, dimensions: int) -> "Moments":
        """Make the moments of no picture."""
        one = torch.zeros((), dtype=torch.float64)
        return cls(one, one.new_zeros(dimensions), one.new_zeros(dimensions, dimensions))

    def add_(self, features: Float[Tensor, "N D"]) -> None:
        """Take in N more feature vectors, in place."""
        rows = features.detach().cpu().double()
        total = rows.sum(dim=0)
        mean = total / max(1, len(rows))
        self.n.add_(len(rows))
        self.total.add_(total)
        # Centred, and the mean's part added at once: far from the origin a sum over all rows
        # would round at every row, in an order that differs between processors.
        centred = rows - mean
        self.outer.addmm_(centred.T, centred).addr_(total, mean)

    def merged(self, other: "Moments") -> "Moments":
        """Return the moments of both parts together."""
        return Moments(*(a + b for a, b in zip(self, other, strict=True)))

    def mean(self) -> Float[Tensor, "D"]:
        """Compute the mean feature vector."""
        return self.total / self.n

    def covariance(self) -> Float[Tensor, "D D"]:
        """Compute the unbiased covariance (divided by n - 1)."""
        return torch.addr(self.outer, self.total, self.mean(), alpha=-1).div_(self.n - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Compute the squared Fréchet (2-Wasserstein) distance of two Normal distributions.

    `a` and `b` are the moments of the distributions.

    Dowson and Landau (1982); for pictures Heusel et al. (2017), eq. 6,
    https://arxiv.org/abs/1706.08500:

        |m_a - m_b|² + tr(S_a + S_b - 2 (S_a S_b)^(1/2))

    The trace of the root is taken in the symmetric form: with S_a = R Rᵀ, the eigenvalues of
    S_a S_b are those of Rᵀ S_b R, which is symmetric and has no complex eigenvalues.

    Raises:
        ValueError: a set has fewer than two pictures, so that it has no covariance.
    """
    _check_sizes(int(a.n), int(b.n))
    if a.n > b.n:  # the smaller set has the lower rank, and so the smaller problem
        a, b = b, a
    covariance_a, covariance_b = a.covariance(), b.covariance()
    # Rounding leaves eigenvalues slightly below 0 where the true ones are 0: they count as 0.
    eigenvalues = torch.linalg.eigvalsh(_symmetric_form(covariance_a, covariance_b)).clamp(min=0)
    trace = covariance_a.trace() + covariance_b.trace() - 2 * eigenvalues.sqrt().sum()
    distance = (a.mean() - b.mean()).square().sum() + trace  # eq. 6
    # For the same reason two equal sets may come out near -1e-6; a squared distance is never < 0.
    return max(0.0, distance.item())


def frechet_distance_of_features(a: Float[Tensor, "N D"], b: Float[Tensor, "M D"]) -> float:
    """Compute `frechet_distance` of two sets of features, far faster where N, M < D.

    With A and B the centred features over the roots of N - 1 and M - 1, S_a = Aᵀ A and
    S_b = Bᵀ B, so that the trace of the root of S_a S_b is the sum of the singular values of A Bᵀ.

    Raises:
        ValueError: a set has fewer than two pictures.
    """
    _check_sizes(len(a), len(b))
    a, b = a.double(), b.double()
    factor_a = (a - a.mean(dim=0)) / math.sqrt(len(a) - 1)
    factor_b = (b - b.mean(dim=0)) / math.sqrt(len(b) - 1)
    root_trace = torch.linalg.svdvals(factor_a @ factor_b.T).sum()
    trace = factor_a.square().sum() + factor_b.square().sum() - 2 * root_trace
    distance = (a.mean(dim=0) - b.mean(dim=0)).square().sum() + trace  # eq. 6
    return max(0.0, distance.item())  # as above


def _check_sizes(*sizes: int) -> None:
    if min(sizes) < 2:
        raise ValueError(f"a Fréchet distance needs at least 2 pictures per set, got {min(sizes)}")


def _symmetric_form(a: Float[Tensor, "D D"], b: Float[Tensor, "D D"]) -> Float[Tensor, "K K"]:
    """Compute Rᵀ b R with R Rᵀ = a; only its lower half is filled."""
    triangle = _cholesky(a)
    if triangle is not None:
        return _triangular_form(triangle, b)
    # Fewer pictures than features: K is the rank, so that few pictures make a small problem.
    eigenvalues, vectors = torch.linalg.eigh(a)
    floor = eigenvalues.abs().max() * len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps
    kept = eigenvalues > floor
    root = vectors[:, kept] * eigenvalues[kept].sqrt()
    return root.T @ b @ root


def _cholesky(a: Float[Tensor, "D D"]) -> Float[Tensor, "D D"] | None:
    """Compute L with L Lᵀ = a, its upper half not filled; None where the rank is not full.

    In blocks the work is nearly all matrix products, which takes two thirds of LAPACK's time.
    """
    factor = torch.empty_like(a)
    for i in range(0, len(a), BLOCK):
        block, below = slice(i, i + BLOCK), slice(i + BLOCK, None)
        panel = a[i:, block] - factor[i:, :i] @ factor[block, :i].T
        corner, failed = torch.linalg.cholesky_ex(panel[:BLOCK])
        if failed:
            return None
        factor[block, block] = corner
        factor[below, block] = torch.linalg.solve_triangular(
            corner.T, panel[BLOCK:], upper=True, left=False
        )
    return factor


def _triangular_form(
    triangle: Float[Tensor, "D D"], b: Float[Tensor, "D D"]
) -> Float[Tensor, "D D"]:
    """Compute the lower half of Lᵀ b L in a quarter of two matrix products: zeros are skipped."""
    product, form = torch.empty_like(b), torch.empty_like(b)
    for i in range(0, len(b), BLOCK):
        block = slice(i, i + BLOCK)
        product[i:, block] = b[i:, i:] @ triangle[i:, block]
    for i in range(0, len(b), BLOCK):
        block = slice(i, i + BLOCK)
        form[block, : i + BLOCK] = triangle[i:, block].T @ product[i:, : i + BLOCK]
    return form


def wilson_interval(successes: int, n: int) -> tuple[float, float] | None:
    """Compute the 95 % interval of a share, Wilson (1927), within [0, 1]; None for n = 0."""
    if n == 0:
        return None
    share, z2 = successes / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At 0 and 1 the bounds are exactly 0 and 1, which rounding must not spoil.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def mean_interval(values: Float[Tensor, "N"]) -> tuple[float, float] | None:
    """Compute the 95 % interval of the mean by its standard error; None below two values."""
    if len(values) < 2:
        return None
    half = Z_95 * values.std().item() / math.sqrt(len(values))
    return values.mean().item() - half, values.mean().item() + half


def student_interval(values: Float[Tensor, "N"]) -> tuple[float, float] | None:
    """Compute the 95 % interval of the mean of few values by Student's t; None below two values."""
    if len(values) < 2:
        return None
    half = student_quantile(len(values) - 1) * values.std().item() / math.sqrt(len(values))
    return values.mean().item() - half, values.mean().item() + half


def student_quantile(freedom: int) -> float:
    """Compute the 97.5 % quantile of Student's t, to 1 %.

    Abramowitz and Stegun (1964), eq. 26.7.5.
    """
    if freedom <= 2:  # where the series is poor, and the quantile has a closed form
        return 0.95 / math.sqrt(2 * 0.975 * 0.025) if freedom == 2 else math.tan(0.475 * math.pi)
    z, n = Z_95, freedom
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )
