"""Which number format the forward pass runs in; weights are always float32."""

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def uses_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Whether the forward pass runs under bfloat16 autocast.

    "auto" says yes where the hardware multiplies bfloat16 itself: a CPU with AVX512-BF16 or AMX, a
    CUDA device of the Ampere generation or later. Anything else, and any other device, is float32.
    """
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _cpu_multiplies_bfloat16()


def _cpu_multiplies_bfloat16() -> bool:
    # torch has no public question for this before 2.10, and may drop the private ones
    probes = (
        getattr(torch.cpu, name, None)
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return any(probe() for probe in probes if probe is not None)
