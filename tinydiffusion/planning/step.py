"""What one training step takes: floating-point operations, seconds and memory."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tinydiffusion.abilities import EncodingAhead
from tinydiffusion.layers.kernels.winograd import FLOPS
from tinydiffusion.protocols import TextEncoder
from tinydiffusion.runtime.live_bytes import LiveBytes
from tinydiffusion.training.trainer import Trainer

TIMED_STEPS = 3
LONG = 20.0  # seconds of timed steps after which no other step is begun


class Memory(NamedTuple):
    """Bytes on one device."""

    weights: int  # trained and frozen
    gradients: int
    optimizer: int
    ema: int
    activations: int  # peak, with all else that a step allocates and frees
    measured: int  # CUDA: the allocator's peak; else growth of the process over the steps

    @property
    def total(self) -> int:
        """Sum of all that is counted."""
        return sum(self[:-1])


class StepCost(NamedTuple):
    """One optimizer step, of `batch_size` pictures in `accumulation` parts."""

    seconds: float  # median
    warm_up: float  # extra seconds of the first step
    forward_flops: dict[str, float]  # component -> per picture, forward pass alone
    flops: float  # per picture: forward, backward, and the optimizer's matrix products
    memory: Memory


def measure_steps(trainer: Trainer, components: Mapping[str, nn.Module]) -> StepCost:
    """Measure what a step takes, from a few steps whose learning rate is 0.

    The weights stay as they are; optimizer and average do not, so the trainer is used up.

    Args:
        trainer: A trainer that has not begun.
        components: Modules whose forward passes are counted one by one.
    """
    learner = trainer.learner
    _remember_states(trainer, components)
    before = resident_bytes()
    batches = trainer.batches.starting_at(0, pin_memory=learner.device.type == "cuda")

    def step() -> None:
        micro_batches = [next(batches) for _ in range(trainer.accumulation)]
        learner.step(micro_batches, 0.0)

    with closing(batches):
        first = _timed(step, learner.device, 1)  # makes the optimizer's state, compiles ...
        forward, flops, activations = _counted(step, learner.parameters, components)
        _reset_peak(learner.device)
        seconds = _timed(step, learner.device, TIMED_STEPS)
    trained = list(learner.parameters.values())
    weights = [*learner.module.parameters(), *learner.module.buffers()]
    memory = Memory(
        weights=num_bytes(weights),
        gradients=num_bytes(trained),
        optimizer=num_bytes(learner.optimizer.named_state().values()),
        ema=num_bytes(learner.ema.weights.values()),
        activations=activations,
        measured=_peak(learner.device, before),
    )
    pictures = trainer.batches.batch_size * trainer.accumulation
    per_picture = {name: count / pictures for name, count in forward.items()}
    return StepCost(seconds, max(0.0, first - seconds), per_picture, flops / pictures, memory)


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Count the bytes of all tensors together."""
    return sum(tensor.nbytes for tensor in tensors)


def resident_bytes() -> int:
    """Return the bytes that this process holds now."""
    import psutil

    return psutil.Process(os.getpid()).memory_info().rss


def now(device: torch.device) -> float:
    """Wait until the device has finished its work, and return the time in seconds."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return perf_counter()


def _remember_states(trainer: Trainer, components: Mapping[str, nn.Module]) -> None:
    """Encode the captions of all steps beforehand, as in a run that encodes ahead."""
    batches = trainer.batches
    for encoder in components.values():
        if isinstance(encoder, EncodingAhead) and isinstance(encoder, TextEncoder):
            for number in range((2 + TIMED_STEPS) * trainer.accumulation):
                batch = batches.batch_at(number * batches.batch_size)
                encoder.encode(["", *batch["caption"]])


def _counted(
    step: Callable[[], None],
    parameters: Mapping[str, Tensor],
    components: Mapping[str, nn.Module],
) -> tuple[dict[str, int], int, int]:
    """Count forward FLOPs by component, total FLOPs, and the peak bytes without gradients."""
    device = next(iter(parameters.values())).device
    flops = FlopCounterMode(display=False, custom_mapping=FLOPS)
    live = LiveBytes(device)
    # Compiled code would be counted as nothing.
    eager = torch.compiler.set_stance("force_eager")
    with eager, _counting_forward(components, flops) as forward, flops, live:
        step()
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    return forward, flops.get_total_flops(), live.peak(without=gradients)


@contextmanager
def _counting_forward(
    components: Mapping[str, nn.Module], flops: FlopCounterMode
) -> Iterator[dict[str, int]]:
    """Count the FLOPs of each component's forward passes inside the `with`."""
    forward = dict.fromkeys(components, 0)
    handles = []
    for name, module in components.items():

        def begin(_: Any, __: Any, name: str = name) -> None:
            forward[name] -= flops.get_total_flops()

        def end(_: Any, __: Any, ___: Any, name: str = name) -> None:
            forward[name] += flops.get_total_flops()

        handles += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    try:
        yield forward
    finally:
        for handle in handles:
            handle.remove()


def _timed(step: Callable[[], None], device: torch.device, most: int) -> float:
    times: list[float] = []
    while len(times) < most and sum(times) < LONG:
        start = now(device)
        step()
        times.append(now(device) - start)
    return median(times)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device, before: int) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resident_bytes() - before
