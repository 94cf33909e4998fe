"""Memory of the C library, set for training and sampling: freed blocks are kept, not given back."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MMAP_THRESHOLDS = (2**30, 2**25 - 1)
"""Blocks below are kept, in bytes. Some versions of glibc take no more than the second."""
NEVER = -1  # as a trim threshold: nothing is given back


def keep_freed_memory() -> bool:
    """Whether the C library took the advice to keep freed memory; glibc alone does.

    Every step of training or sampling frees and asks for the same activations. By default glibc
    gives large blocks back to the system each time, and the next step faults in every page again:
    9 to 15 % of a step on a CPU, and 20 to 40 % where there are blocks beyond 32 MiB. What is kept
    is not always of the size that is asked for next: the peak grows, by up to a third.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    below = any(mallopt(M_MMAP_THRESHOLD, threshold) for threshold in MMAP_THRESHOLDS)
    return below and bool(mallopt(M_TRIM_THRESHOLD, NEVER))
