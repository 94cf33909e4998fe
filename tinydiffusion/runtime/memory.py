"""Out-of-memory errors that report how much memory there was and which settings to change."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tinydiffusion.runtime.errors import OutOfMemoryError

CPU_MESSAGE = "can't allocate memory"  # in the RuntimeError of torch's CPU allocator
ADVICE = (
    "raise training.accumulation: the same batch in more parts, the same result",
    "set network.gradient_checkpointing to true: the same result in less memory, a little slower",
    "set training.precision to bfloat16, where it is not",
    "lower training.batch_size",
    "make network.channels or network.layers_per_block smaller",
    "make the pictures smaller (dataset.size)",
)
"""Settings to change, the cheapest first."""


@contextmanager
def naming_memory(device: torch.device) -> Iterator[None]:
    """Raise OutOfMemoryError with advice where memory runs out inside the `with`.

    Raises:
        OutOfMemoryError: has the peak where the device reports it, and ADVICE.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        lacking = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not (lacking or CPU_MESSAGE in str(error)):
            raise
        steps = "\n".join(f"  {number}. {text}" for number, text in enumerate(ADVICE, start=1))
        raise OutOfMemoryError(
            f"out of memory on {device}{_peak(device)}. In this order:\n{steps}\n"
            "The same command goes on from the last checkpoint (changed settings: --allow-change)"
        ) from error


def _peak(device: torch.device) -> str:
    if device.type == "cuda":
        peak, total = torch.cuda.max_memory_allocated(device), torch.cuda.mem_get_info(device)[1]
    elif sys.platform != "win32":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # peak of the whole process
        peak *= 1 if sys.platform == "darwin" else 1024
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        return ""  # Python's standard library does not report it on Windows
    return f" (peak {peak / 2**30:.1f} GiB of {total / 2**30:.1f} GiB)"
