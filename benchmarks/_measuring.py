"""What several benchmarks need: the machine in words, contestants in turns, counted FLOPs."""

import ctypes
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from tinydiffusion.layers.kernels.winograd import FLOPS
from tinydiffusion.layers.precision import uses_bfloat16

Name = TypeVar("Name")
Value = TypeVar("Value")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
"""Of a processor, those that decide how fast it multiplies float32 and bfloat16."""


def machine(device: torch.device) -> dict[str, Any]:
    """What a speed depends on, beside the code that is measured."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": _instructions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "multiplies_bfloat16": uses_bfloat16("auto", device),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
    }


def _processor() -> str:
    names = [value for key, value in _cpuinfo() if key == "model name"]
    return names[0] if names else platform.processor() or platform.machine()


def _instructions() -> list[str]:
    flags = {word for key, value in _cpuinfo() if key.lower() in ("flags", "features")
             for word in value.split()}  # fmt: skip
    return [name for name in INSTRUCTIONS if name in flags]


def _cpuinfo() -> list[tuple[str, str]]:
    """Keys and values of Linux's list of processors; elsewhere none."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    pairs = (line.partition(":") for line in lines)
    return [(key.strip(), value.strip()) for key, _, value in pairs]


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was asked to do."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


class OwnProcess:
    """Calls functions in one process of its own, so that a contestant shares memory with none.

    The functions must be a module's; what they raise is raised here.
    """

    def __init__(self) -> None:
        self._executor = ProcessPoolExecutor(1, mp_context=get_context("spawn"))

    def __enter__(self) -> "OwnProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown()

    def __call__(self, function: Callable[..., Value], *arguments: Any) -> Value:
        """What the function returns there."""
        return self._executor.submit(function, *arguments).result()


def give_back_memory() -> None:
    """Give freed memory back to the system where the C library can, for others to have it."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_turns(
    contestants: Mapping[Name, Callable[[], float]], rounds: int
) -> dict[Name, list[float]]:
    """What every contestant measures in every round; every second round goes backwards."""
    results: dict[Name, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        order = list(contestants)
        for name in reversed(order) if number % 2 else order:
            results[name].append(contestants[name]())
    return results


def summary(values: Sequence[float], digits: int = 4) -> dict[str, Any]:
    """The values of all rounds and their median, to so many significant digits."""
    return {
        "rounds": [rounded(value, digits) for value in values],
        "median": rounded(statistics.median(values), digits),
    }


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """How many times theirs ours is, round by round, and the median."""
    return summary([a / b for a, b in zip(ours, theirs, strict=True)])


def rounded(value: float, digits: int = 4) -> float:
    """The value to so many significant digits."""
    return float(f"{value:.{digits}g}")


def forward_flops(forward: Callable[[], Any]) -> int:
    """Floating-point operations of a call, an addition and a multiplication being two."""
    counter = FlopCounterMode(display=False, custom_mapping=FLOPS)
    with torch.no_grad(), counter:
        forward()
    return counter.get_total_flops()
