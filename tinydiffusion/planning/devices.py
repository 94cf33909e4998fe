"""The same run on several devices like this one."""

from typing import NamedTuple

from torch import nn

from tinydiffusion.planning.step import Memory, num_bytes
from tinydiffusion.planning.time import Timetable
from tinydiffusion.training.micro_batches import advice, parts_of_batch

BANDWIDTH = 10e9  # bytes/s that a device can send, for want of a measurement
ALL_REDUCE = 2
"""How often a gradient travels round a ring: summed in parts, then the sums are handed on."""


class DeviceShare(NamedTuple):
    """What one of N devices does, the global batch and the pictures being the same."""

    devices: int
    pictures_at_once: float  # in one forward pass
    sent_bytes: float  # by each device in a step, DDP
    compute_seconds: float  # of a step, if sending cost nothing
    step_seconds: float  # of a step that waits for all that is sent at BANDWIDTH
    pictures_seen: int  # in the whole run, which `max_minutes` may end
    run_seconds: float  # of the whole run; what is not training is done by one device
    ddp_bytes: float  # memory of a device
    fsdp_bytes: float  # of the main process, which keeps the whole weights to show the model
    advice: str  # what to change where the batch cannot be shared equally


def share(
    devices: int, *, times: Timetable, memory: Memory, accumulation: int, block_bytes: int
) -> DeviceShare:
    """One of `devices` devices, estimated from what one alone takes.

    DDP leaves each device all of it. FSDP2 leaves each device 1/N of trained
    weights, gradients, average and optimizer, puts together two blocks at a time, and the main
    process keeps the whole model beside. Activations are those of the device's part of the batch.

    Args:
        devices: N.
        times: Of one device.
        memory: Of one device.
        accumulation: Parts of the batch.
        block_bytes: Weights of the largest block that FSDP2 puts together.
    """
    sent = ALL_REDUCE * (devices - 1) / devices * memory.gradients
    seconds = times.step_seconds / devices + sent / BANDWIDTH
    run = times._replace(step_seconds=seconds)
    parts = parts_of_batch(accumulation, devices)
    at_once = times.batch_size / parts / devices
    activations = memory.activations * at_once / (times.batch_size / accumulation)
    state = memory.total - memory.activations
    frozen = memory.weights - memory.gradients  # which FSDP2 leaves whole
    shared, several = (state - frozen) / devices, devices > 1
    return DeviceShare(
        devices=devices,
        pictures_at_once=at_once,
        sent_bytes=sent,
        compute_seconds=times.step_seconds / devices,
        step_seconds=seconds,
        pictures_seen=run.pictures_seen,
        run_seconds=run.total_seconds,
        ddp_bytes=state + activations,
        fsdp_bytes=shared + frozen + activations + several * (memory.weights + 2 * block_bytes),
        advice=advice(times.batch_size, accumulation, devices),
    )


def largest_block(module: nn.Module) -> int:
    """Bytes of the largest member of all module lists, which is what FSDP2 puts together."""
    lists = [each for each in module.modules() if isinstance(each, nn.ModuleList)]
    sizes = (num_bytes(block.parameters()) for each in lists for block in each)
    return max(sizes, default=0)
