"""Features of the CPU, from private functions of torch: it has no public ones before 2.10."""

import torch


def has_amx() -> bool:
    """Return whether the CPU multiplies matrices of bfloat16 in tiles (AMX)."""
    return _answer("_is_amx_tile_supported")


def has_vnni() -> bool:
    """Return whether the CPU sums products of 8-bit integers in one instruction (AVX512-VNNI)."""
    return _answer("_is_vnni_supported")


def multiplies_bfloat16() -> bool:
    """Return whether the CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX)."""
    return _answer("_is_avx512_bf16_supported") or has_amx()


def _answer(probe: str) -> bool:
    return getattr(torch.cpu, probe, lambda: False)()
