"""Which number format the forward pass runs in; weights are always float32."""

from typing import Literal

import torch

from tinydiffusion.layers.kernels.int8 import int8_obstacle
from tinydiffusion.runtime.cpu import has_amx, multiplies_bfloat16

Precision = Literal["auto", "float32", "bfloat16", "int8"]
"""int8 is for sampling: convolutions in int8 where that pays, all else as with "auto"."""


def uses_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Return whether the forward pass runs under bfloat16 autocast.

    "auto" says yes where the hardware multiplies bfloat16 itself: a CPU with AVX512-BF16 or AMX, a
    CUDA device of the Ampere generation or later. Anything else, and any other device, is float32.
    """
    if precision in ("float32", "bfloat16"):
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and multiplies_bfloat16()


def uses_int8(precision: Precision, device: torch.device) -> bool:
    """Return whether sampling calls int8 convolutions, see `layers/kernels/int8.py`.

    "auto" says yes on a CPU with AVX512-VNNI and without AMX, whose convolutions in bfloat16 are so
    fast that rounding to integers takes longer than what they save.

    Raises:
        ValueError: int8 is asked for where there is none.
    """
    obstacle = int8_obstacle(device)
    if precision == "int8" and obstacle is not None:
        raise ValueError(f"precision must be auto, float32 or bfloat16 here, got int8: {obstacle}")
    return obstacle is None and (precision == "int8" or (precision == "auto" and not has_amx()))
