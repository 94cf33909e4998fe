"""How time and memory of training grow with pictures, texts, batch, network and data set.

python benchmarks/scaling.py

Prints one JSON object; the exit code is 1 if a promise is broken. See benchmarks/README.md.
"""

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _measuring import in_turns, machine, now, ratio, rounded, summary

from tinydiffusion import config as config_file
from tinydiffusion.build import build_dataset, build_learner, build_objective
from tinydiffusion.config import Config
from tinydiffusion.protocols import Batch
from tinydiffusion.runtime.allocator import keep_freed_memory
from tinydiffusion.runtime.live_bytes import LiveBytes
from tinydiffusion.survey import survey
from tinydiffusion.training.data_order import Batches

QUICKSTART = config_file.load(Path(__file__).parent.parent / "configs/quickstart.yaml")
CHANNELS = tuple(QUICKSTART.network["channels"])
BASE = {"size": 32, "tokens": 32, "batch": 16, "channels": CHANNELS}
"""The quickstart's network; along each axis one of these changes."""
AXES: dict[str, Sequence[Any]] = {
    "size": (16, 32, 64, 128),
    "tokens": (16, 32, 64, 77),
    "batch": (4, 16, 64, 128),
    "channels": [tuple(c * n // 2 for c in CHANNELS) for n in (1, 2, 4, 6)],
}
QUICK_AXES: dict[str, Sequence[Any]] = {"size": (16, 32), "channels": ((32, 32), (64, 32))}
DATA_BATCH = QUICKSTART.training.batch_size
DATA_SIZES = (1_000, 10_000, 100_000, 1_000_000)
QUICK_DATA_SIZES = (100, 200)
MAX_GROWTH = 1.05  # of the process's memory, from the smallest data set to any other
MIN_RATIO = 0.95  # of the throughput with the smallest data set


def config_of(
    *,
    size: int = 32,
    tokens: int | None = None,
    channels: Sequence[int] = CHANNELS,
    num_scenes: int = 100_000,
) -> Config:
    """The quickstart's, changed; without a number of tokens, as many as its captions need."""
    return dataclasses.replace(
        QUICKSTART,
        dataset={**QUICKSTART.dataset, "size": size, "num_scenes": num_scenes},
        network={**QUICKSTART.network, "channels": list(channels)},
        text_encoder={**QUICKSTART.text_encoder, "max_length": tokens},
    )


# ---- one step --------------------------------------------------------------------------------


class Point:
    """A training with its own sizes, to be run a few steps at a time on the same batch."""

    def __init__(self, captions: Sequence[str], *, batch: int, **sizes: Any) -> None:
        config = config_of(**sizes)
        objective = build_objective(config, captions)
        self.learner = build_learner(config, objective)
        self.batch: Batch = next(Batches(build_dataset(config.dataset), batch).starting_at(0))
        self.step()

    def step(self) -> None:
        """One, at a learning rate of 0."""
        self.learner.step([self.batch], 0.0)

    def seconds(self, steps: int) -> float:
        """Per picture, over some steps."""
        start = now(self.learner.device)
        for _ in range(steps):
            self.step()
        return (now(self.learner.device) - start) / (steps * len(self.batch["id"]))

    def sizes(self) -> dict[str, Any]:
        """Trained numbers, and bytes: of what stays, and of what a step adds at its peak."""
        learner = self.learner
        with LiveBytes(learner.device) as live:
            self.step()
        kept = [*learner.parameters.values(), *learner.ema.weights.values()]
        kept += learner.optimizer.named_state().values()
        state, step = sum(tensor.nbytes for tensor in kept), live.peak()
        return {
            "parameters": sum(p.numel() for p in learner.parameters.values()),
            "state_bytes": state,
            "step_bytes": step,
            "peak_bytes": state + step,
        }


def grow(axes: Mapping[str, Sequence[Any]], steps: int, rounds: int) -> dict[str, Any]:
    """Seconds and bytes along every axis."""
    captions, _ = survey(build_dataset({"name": "scenes", "num_scenes": 500}))
    return {
        axis: grow_along(axis, values, captions, steps, rounds) for axis, values in axes.items()
    }


def grow_along(
    axis: str, values: Sequence[Any], captions: Sequence[str], steps: int, rounds: int
) -> list[dict[str, Any]]:
    """A row for every value on one axis, all else being as in `BASE`."""
    points = {value: Point(captions, **{**BASE, axis: value}) for value in values}
    sizes = {value: point.sizes() for value, point in points.items()}
    seconds = in_turns({v: partial(p.seconds, steps) for v, p in points.items()}, rounds)
    return [
        {axis: value, "seconds_per_picture": summary(seconds[value]), **sizes[value]}
        for value in values
    ]


# ---- data sets -------------------------------------------------------------------------------


class DataTraining:
    """The quickstart's training on so many scenes, to be run a few steps at a time."""

    def __init__(self, num_scenes: int) -> None:
        start = now(torch.device("cpu"))
        config = config_of(num_scenes=num_scenes)
        dataset = build_dataset(config.dataset)
        captions, _ = survey(dataset)
        self.learner = build_learner(config, build_objective(config, captions))
        self.batches: Iterator[Batch] = Batches(dataset, DATA_BATCH).starting_at(0)
        self.pace(1)
        self.ready_s = now(torch.device("cpu")) - start

    def pace(self, steps: int) -> float:
        """Pictures per second, drawn scenes included."""
        start = now(self.learner.device)
        for _ in range(steps):
            self.learner.step([next(self.batches)], 1.0)
        return steps * DATA_BATCH / (now(self.learner.device) - start)


def hold(num_scenes: int, steps: int) -> dict[str, float]:
    """What this process, which does nothing else, needs to be ready and to train."""
    training = DataTraining(num_scenes)
    training.pace(steps)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"ready_s": rounded(training.ready_s, 3), "peak_mib": rounded(peak / 2**20)}


def grow_data(sizes: Sequence[int], steps: int, rounds: int) -> list[dict[str, Any]]:
    """A row for every number of scenes: memory of a process of its own, and throughput."""
    held = []
    for size in sizes:
        command = [sys.executable, __file__, "--hold", str(size), "--data-steps", str(steps)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        held.append(json.loads(output))
    trainings = {size: DataTraining(size) for size in sizes}
    paces = in_turns({size: partial(t.pace, steps) for size, t in trainings.items()}, rounds)
    first = paces[sizes[0]]
    return [
        {
            "num_scenes": size,
            **memory,
            "growth": rounded(memory["peak_mib"] / held[0]["peak_mib"]),
            "pictures_per_s": summary(paces[size]),
            "ratio": ratio(paces[size], first),
        }
        for size, memory in zip(sizes, held, strict=True)
    ]


# ---- all of it -------------------------------------------------------------------------------


def verdict(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every promise that is broken, in words."""
    broken = []
    for row in rows:
        scenes = f"{row['num_scenes']} scenes"
        if row["growth"] > MAX_GROWTH:
            broken.append(f"{scenes}: {row['growth']} times the memory, at most {MAX_GROWTH}")
        if (speed := row["ratio"]["median"]) < MIN_RATIO:
            broken.append(f"{scenes}: {speed} of the throughput, at least {MIN_RATIO}")
    return broken


def main() -> int:
    """The exit code: 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of training, per round")
    parser.add_argument("--data-steps", type=int, default=20, help="the same, of data sets")
    parser.add_argument("--quick", action="store_true", help="few sizes, which prove nothing")
    parser.add_argument("--hold", type=int, metavar="SCENES", help="train on these only")
    options = parser.parse_args()
    keep_freed_memory()
    if options.hold:
        print(json.dumps(hold(options.hold, options.data_steps)))
        return 0
    axes, sizes = (QUICK_AXES, QUICK_DATA_SIZES) if options.quick else (AXES, DATA_SIZES)
    # First, while this process is small: the kernel counts a parent's peak as its child's.
    data = grow_data(sizes, options.data_steps, options.rounds)
    result: dict[str, Any] = {
        "machine": machine(torch.device("cpu")),
        "base": BASE,
        "steps_per_round": {"axes": options.steps, "data": options.data_steps},
        "axes": grow(axes, options.steps, options.rounds),
        "data": data,
    }
    result["broken"] = [] if options.quick else verdict(result["data"])
    print(json.dumps(result, indent=1))
    return 1 if result["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
