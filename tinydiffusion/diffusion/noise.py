"""Randomness: one generator per picture, so that picture i is the same in any batch."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tinydiffusion.protocols import Generators


def picture_generators(seed: int, first: int, count: int) -> list[torch.Generator]:
    """The generators of pictures first ... first + count - 1; that of picture i has seed + i.

    Raises:
        ValueError: a picture's seed is outside [0, 2**64).
    """
    last = seed + first + count - 1
    if seed < 0 or first < 0 or last >= 2**64:
        raise ValueError(
            f"the seed of every picture must be in [0, 2**64), got {seed + first} to {last}"
        )
    return [torch.Generator().manual_seed(seed + first + i) for i in range(count)]


def randn(
    shape: Sequence[int],
    generators: Generators,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "B C H W"]:
    """Standard normal noise, picture i from generator i.

    Drawn in float32 where the generators live and then moved, so that every device and dtype sees
    the same noise.

    Args:
        shape: (B, C, H, W).
        generators: B of them.
        dtype: Of the result.
        device: Of the result.

    Raises:
        ValueError: the number of generators is not B.
    """
    _check_number(generators, shape[0])
    drawn = [torch.randn(*shape[1:], generator=g, device=g.device) for g in generators]
    return torch.stack(drawn).to(device=device, dtype=dtype)


def nearest_randn(
    x_0: Float[Tensor, "B C H W"], generators: Generators, num_candidates: int
) -> Float[Tensor, "B C H W"]:
    """Of several standard normal noises for each picture, the one with the least squared distance.

    The noise selection of Li et al. (2025), https://arxiv.org/abs/2505.18521. Their Immiscible
    Diffusion (2024), https://arxiv.org/abs/2406.12303, assigns the noises of a batch to its
    pictures; here a picture chooses among its own, so that it gets the same in any batch.

    What is chosen is no longer standard normal: it is a little short, and on average it holds a
    share 2 m / sqrt(2 n + 4 |x_0|^2) of the picture, where m is the expected largest of
    `num_candidates` standard normal numbers and n = C H W; of 4 for 32 x 32 pixels, about 2 %.

    Args:
        x_0: Pictures in [-1, 1]; the noise is moved to their device.
        generators: One per picture.
        num_candidates: Of one, the noise is that of `randn`.

    Raises:
        ValueError: the number of generators is not B.
    """
    if num_candidates == 1:
        return randn(x_0.shape, generators, device=x_0.device)
    _check_number(generators, len(x_0))
    shape = (num_candidates, *x_0.shape[1:])
    drawn = [torch.randn(shape, generator=g, device=g.device) for g in generators]
    candidates = torch.stack(drawn).to(x_0.device)
    # One by one: sums over a whole batch are rounded in an order that depends on its size.
    nearest = [
        (noises - x).square().sum((1, 2, 3)).argmin()
        for x, noises in zip(x_0, candidates, strict=True)
    ]
    pictures = torch.arange(len(x_0), device=x_0.device)
    return candidates[pictures, torch.stack(nearest)]


def _check_number(generators: Generators, count: int) -> None:
    if len(generators) != count:
        raise ValueError(f"{count} pictures need {count} generators, got {len(generators)}")
