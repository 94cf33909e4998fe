"""What a run holds in memory, compared with what this device has."""

import torch

from tinydiffusion.pictures.usable import first_usable
from tinydiffusion.planning.quantity import Quantity, Section
from tinydiffusion.planning.step import Memory, resident_bytes
from tinydiffusion.protocols import Dataset


def memory_rows(memory: Memory, device: torch.device, at_once: int, dataset: Dataset) -> Section:
    """List every part of the memory.

    Args:
        memory: Memory of a step.
        device: The device of the step.
        at_once: Pictures of a forward pass.
        dataset: The training set.
    """
    cuda = device.type == "cuda"
    capacity = capacity_bytes(device)
    held = memory.total - memory.activations
    # What allocator and kernels keep besides the activations grows with them. On a CPU the peak is
    # the growth of the process, which held weights and average already.
    in_peak = held if cuda else memory.gradients + memory.optimizer
    used = max(1, memory.activations, memory.measured - in_peak)
    fitting = max(0, int((capacity - held) * at_once / used))
    count, example = len(dataset), first_usable(dataset)["image"]
    notes = {
        "activations": f"{at_once} pictures at once; not what kernels keep to themselves",
        "peak": "of the allocator" if cuda else "growth of this process",
        "fit": "batch_size / accumulation; by activations or peak, whichever is more",
        "device": f"of {device}, free before the run",
        "data set": f"{count} pictures decoded, if they are held",
    }
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "average (EMA)": memory.ema,
        "activations": memory.activations,
        "total": memory.total,
    }
    rows = {k: Quantity(v, "bytes", "counted", notes.get(k, "")) for k, v in parts.items()}
    rows["peak"] = Quantity(memory.measured, "bytes", "measured", notes["peak"])
    if not cuda:
        rows["process"] = Quantity(resident_bytes(), "bytes", "measured", "all of it, now")
    rows["device"] = Quantity(capacity, "bytes", "measured", notes["device"])
    rows["fit at once"] = Quantity(fitting, "pictures", "estimated", notes["fit"])
    rows["data set"] = Quantity(count * example.nbytes, "bytes", "counted", notes["data set"])
    return rows


def capacity_bytes(device: torch.device) -> int:
    """Return the bytes that this process can have: what is free, and what it has already."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    import psutil

    return psutil.virtual_memory().available + resident_bytes()
