"""What the CPU can do; torch has no public questions for it before 2.10, and may drop these."""

import torch


def has_amx() -> bool:
    """Whether it multiplies matrices of bfloat16 in tiles."""
    return _answer("_is_amx_tile_supported")


def has_vnni() -> bool:
    """Whether it adds up products of 8-bit integers in one instruction (AVX512-VNNI)."""
    return _answer("_is_vnni_supported")


def multiplies_bfloat16() -> bool:
    """Whether it multiplies bfloat16 itself (AVX512-BF16 or AMX)."""
    return _answer("_is_avx512_bf16_supported") or has_amx()


def _answer(probe: str) -> bool:
    return getattr(torch.cpu, probe, lambda: False)()
