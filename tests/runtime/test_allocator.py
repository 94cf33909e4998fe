"""Proves that the allocator's advice is taken where there is glibc, and refused nowhere else."""

import platform
import subprocess
import sys

import pytest
import torch

from tinydiffusion.runtime.allocator import MMAP_THRESHOLDS, keep_freed_memory

GLIBC = platform.libc_ver()[0] == "glibc"
AGAIN = """
import ctypes, resource, torch
from tinydiffusion.runtime.allocator import M_MMAP_THRESHOLD, MMAP_THRESHOLDS, keep_freed_memory
torch.set_num_threads(1)
keep_freed_memory()
mallopt = ctypes.CDLL(None).mallopt
threshold = next(each for each in MMAP_THRESHOLDS if mallopt(M_MMAP_THRESHOLD, each))
size = threshold // 16
for _ in range(10):  # the first calls of an aligned allocation do not find what was freed yet
    torch.ones(size, dtype=torch.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(size, dtype=torch.uint8)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults, 10 * size // resource.getpagesize())
"""


def test_glibc_takes_the_advice_and_tensors_still_work():
    assert keep_freed_memory() == GLIBC
    total = sum(torch.ones(2**20).sum().item() for _ in range(4))
    assert total == 4 * 2**20


@pytest.mark.skipif(not GLIBC, reason="the advice is for glibc")
def test_a_freed_block_is_not_faulted_in_again():
    """In a process of its own, whose allocator has no other past."""
    command = [sys.executable, "-c", AGAIN]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    faults, pages = map(int, ended.stdout.split())
    assert pages >= 2**11
    assert faults < pages / 10


def test_the_largest_threshold_comes_first():
    assert sorted(MMAP_THRESHOLDS, reverse=True) == list(MMAP_THRESHOLDS)
