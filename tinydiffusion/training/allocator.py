"""Memory of the C library, set for training and sampling: freed blocks are kept, not given back."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST_MMAP_THRESHOLD = 32 * 2**20 - 1


def keep_freed_memory() -> bool:
    """Whether the C library took the advice to keep freed memory; glibc alone does.

    Every step of training or sampling frees and asks for the same activations. By default glibc
    gives blocks of more than a few hundred kB back to the system each time, and the next step
    faults in every page again: 9 to 15 % of a step on a CPU.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD) and mallopt(M_TRIM_THRESHOLD, 2**30)
    )
