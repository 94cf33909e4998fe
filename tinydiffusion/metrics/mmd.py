"""The unbiased squared maximum mean discrepancy and its interval, for any kernel."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from tinydiffusion.metrics.jackknife import jackknife_interval

Kernel = Callable[[Float[Tensor, "N D"], Float[Tensor, "M D"]], Float[Tensor, "N M"]]
CHUNK = 1024


def unbiased_mmd(
    x: Float[Tensor, "N D"], y: Float[Tensor, "M D"], kernel: Kernel
) -> tuple[float, tuple[float, float] | None]:
    """Compute the unbiased estimate of MMD², which may be below 0 by chance, and its 95 % interval.

    Gretton et al. (2012), eq. 3, https://jmlr.org/papers/v13/gretton12a.html. The interval is that
    of the jackknife over the pictures of both sets; None where a set has fewer than three.

    Raises:
        ValueError: a set has fewer than two pictures.
    """
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError(f"an unbiased MMD needs at least 2 pictures per set, got {n} and {m}")
    within_x = _row_sums(x, x, kernel) - _diagonal(x, kernel)
    within_y = _row_sums(y, y, kernel) - _diagonal(y, kernel)
    across_x, across_y = _row_sums(x, y, kernel), _row_sums(y, x, kernel)
    total_x, total_y, across = within_x.sum(), within_y.sum(), across_x.sum()
    mean_x, mean_y = total_x / (n * (n - 1)), total_y / (m * (m - 1))
    value = (mean_x + mean_y - 2 * across / (n * m)).item()  # eq. 3
    if min(n, m) < 3:
        return value, None
    # The same with one picture less: its row and its column of its own kernel matrix are left out.
    rest_x = (total_x - 2 * within_x) / ((n - 1) * (n - 2))
    rest_y = (total_y - 2 * within_y) / ((m - 1) * (m - 2))
    without_x = rest_x + mean_y - 2 * (across - across_x) / ((n - 1) * m)
    without_y = mean_x + rest_y - 2 * (across - across_y) / (n * (m - 1))
    return value, jackknife_interval(value, without_x, without_y)


def _row_sums(
    x: Float[Tensor, "N D"], y: Float[Tensor, "M D"], kernel: Kernel
) -> Float[Tensor, "N"]:
    """Sum the kernel over all of y for every row of x, in pieces that fit into memory."""
    parts = [torch.stack([kernel(a, b).sum(dim=1) for b in y.split(CHUNK)]) for a in x.split(CHUNK)]
    return torch.cat([part.sum(dim=0) for part in parts])


def _diagonal(x: Float[Tensor, "N D"], kernel: Kernel) -> Float[Tensor, "N"]:
    return torch.cat([kernel(a, a).diagonal() for a in x.split(CHUNK)])
