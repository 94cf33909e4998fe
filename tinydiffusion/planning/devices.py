"""The same run on several devices like this one."""

from typing import NamedTuple

from torch import nn

from tinydiffusion.planning.step import Memory, num_bytes
from tinydiffusion.planning.time import Timetable
from tinydiffusion.training.micro_batches import advice, parts_of_batch

BANDWIDTH = 10e9  # bytes/s that a device can send; assumed, not measured
ALL_REDUCE = 2
"""How often a gradient travels round a ring: once to sum the parts, once to pass on the sums."""


class DeviceShare(NamedTuple):
    """The share of one of N devices in a run with the same global batch and pictures."""

    devices: int
    pictures_at_once: float  # in one forward pass
    sent_bytes: float  # by each device in a step, DDP
    compute_seconds: float  # of a step, if sending cost nothing
    step_seconds: float  # of a step that waits for all that is sent at BANDWIDTH
    pictures_seen: int  # in the whole run, which `max_minutes` may end
    run_seconds: float  # of the whole run; all but training is done by one device
    ddp_bytes: float  # memory of a device
    fsdp_bytes: float  # memory of the main process, which also keeps the whole weights
    advice: str  # what to change where the batch cannot be shared equally


def share(
    devices: int, *, times: Timetable, memory: Memory, accumulation: int, block_bytes: int
) -> DeviceShare:
    """Estimate the share of one of `devices` devices from what one device alone takes.

    With DDP each device holds the whole state. With FSDP2 each device holds 1/N of trained weights,
    gradients, average and optimizer, gathers two blocks at a time, and the main process also keeps
    the whole model. Activations are those of the device's part of the batch.

    Args:
        devices: Number N of devices.
        times: Timetable of one device.
        memory: Memory of one device.
        accumulation: Number of parts of the batch.
        block_bytes: Weights of the largest block that FSDP2 gathers, in bytes.
    """
    sent = ALL_REDUCE * (devices - 1) / devices * memory.gradients
    seconds = times.step_seconds / devices + sent / BANDWIDTH
    run = times._replace(step_seconds=seconds)
    parts = parts_of_batch(accumulation, devices)
    at_once = times.batch_size / parts / devices
    activations = memory.activations * at_once / (times.batch_size / accumulation)
    state = memory.total - memory.activations
    frozen = memory.weights - memory.gradients  # FSDP2 does not shard these
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
    """Return the bytes of the largest member of all module lists, which FSDP2 gathers at once."""
    lists = [each for each in module.modules() if isinstance(each, nn.ModuleList)]
    sizes = (num_bytes(block.parameters()) for each in lists for block in each)
    return max(sizes, default=0)
