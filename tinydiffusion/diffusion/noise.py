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
    if len(generators) != shape[0]:
        raise ValueError(f"{shape[0]} pictures need {shape[0]} generators, got {len(generators)}")
    drawn = [torch.randn(*shape[1:], generator=g, device=g.device) for g in generators]
    return torch.stack(drawn).to(device=device, dtype=dtype)
