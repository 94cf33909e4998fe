"""Proves that the allocator's advice is taken where there is glibc, and refused nowhere else."""

import platform

import torch

from tinydiffusion.training.allocator import keep_freed_memory


def test_glibc_takes_the_advice_and_tensors_still_work():
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
    total = sum(torch.ones(2**20).sum().item() for _ in range(4))
    assert total == 4 * 2**20
