"""Packs drawn scenes into shards, trains on them and on the same pictures in memory, and compares.

python benchmarks/shards.py

Prints one JSON object; the exit code is 1 if a promise is broken. See benchmarks/README.md.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tinydiffusion import config as config_file
from tinydiffusion.build import build_dataset, build_objective
from tinydiffusion.packing.pack import pack
from tinydiffusion.protocols import Batch
from tinydiffusion.runtime.allocator import keep_freed_memory
from tinydiffusion.survey import survey
from tinydiffusion.training.data_order import Batches
from tinydiffusion.training.learner import Learner

CONFIG = "configs/quickstart.yaml"
SIZE = 32
BATCH = 64
READINGS = 20  # of memory, in one epoch
MAX_GROWTH = 4.0  # MiB, after the first tenth of the epoch
MIN_RATIO = 0.95  # of the throughput in memory


def section(name: str, shards: str) -> dict[str, Any]:
    """The `dataset` section of the shards, read at visits (`shards`) or at the start (`tar`)."""
    return {"name": name, "path": shards, "size": SIZE}


def make_shards(folder: Path, num_pictures: int) -> dict[str, Any]:
    """How long it takes to draw and pack scenes, and the bytes of the shards."""
    scenes = {"name": "scenes", "size": SIZE, "num_scenes": num_pictures}
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        pack(scenes, folder, picture_format="png", shard_size=1000, workers=1)
    shards = list(folder.glob("*.tar"))
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "shards": len(shards),
        "megabytes": round(sum(shard.stat().st_size for shard in shards) / 1e6, 1),
    }


# ---- memory ----------------------------------------------------------------------------------


def read_epoch(shards: str) -> dict[str, Any]:
    """Memory and pace of this process, which reads one epoch and does nothing else."""
    keep_freed_memory()
    start = time.perf_counter()
    dataset = build_dataset(section("shards", shards))
    opened = time.perf_counter()
    batches = Batches(dataset, BATCH).starting_at(0)
    num_batches = len(dataset) // BATCH
    readings = []
    for number in range(num_batches):
        next(batches)
        if (number + 1) * READINGS // num_batches > len(readings):
            readings.append(round(_resident_mib(), 1))
    seconds = time.perf_counter() - opened
    settled = readings[READINGS // 10 - 1]
    return {
        "open_s": round(opened - start, 3),
        "pictures_per_s": round(num_batches * BATCH / seconds),
        "rss_mib": readings,
        "growth_mib": round(max(readings) - settled, 1),
    }


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


# ---- throughput ------------------------------------------------------------------------------


class Training:
    """The quickstart's training on one data set, to be run a few steps at a time."""

    def __init__(self, name: str, shards: str) -> None:
        config = config_file.load(CONFIG)
        dataset = build_dataset(section(name, shards))
        torch.manual_seed(0)
        objective = build_objective(config, survey(dataset)[0])
        self.learner = Learner(
            objective,
            learning_rate=config.training.learning_rate,
            muon_modules=config.training.muon_modules,
        )
        self.batches: Iterator[Batch] = Batches(dataset, BATCH).starting_at(0)
        self.loss = torch.zeros(())

    def pace(self, steps: int) -> float:
        """Pictures per second over some steps."""
        start = time.perf_counter()
        for _ in range(steps):
            scalars, _ = self.learner.step([next(self.batches)], 1.0)
            self.loss = scalars[0]["loss"]
        return steps * BATCH / (time.perf_counter() - start)


def compare(shards: str, steps: int, rounds: int) -> dict[str, Any]:
    """Pictures per second with the shards and with the same pictures in memory, in turns."""
    trainings = {name: Training(name, shards) for name in ("shards", "tar")}
    for training in trainings.values():
        training.pace(2)
    paces: dict[str, list[float]] = {name: [] for name in trainings}
    for number in range(rounds):
        for name in sorted(trainings, reverse=number % 2 == 1):  # who begins takes turns, too
            paces[name].append(trainings[name].pace(steps))
    ratios = [ours / other for ours, other in zip(paces["shards"], paces["tar"], strict=True)]
    return {
        "steps_per_round": steps,
        "pictures_per_s": {name: [round(p, 1) for p in values] for name, values in paces.items()},
        "medians": {name: round(statistics.median(p), 1) for name, p in paces.items()},
        "ratios": [round(ratio, 4) for ratio in ratios],
        "ratio": round(statistics.median(ratios), 4),
    }


def run(shards: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed."""
    result = {"pictures": options.pictures, "pack": make_shards(shards, options.pictures)}
    # In a process of its own: packing and training leave their traces in this one's memory.
    command = [sys.executable, __file__, "--read", str(shards)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result["reading"] = json.loads(output)
    result["training"] = compare(str(shards), options.steps, options.rounds)
    broken = []
    if (growth := result["reading"]["growth_mib"]) > MAX_GROWTH:
        broken.append(f"memory grows by {growth} MiB in one epoch, at most {MAX_GROWTH}")
    if (ratio := result["training"]["ratio"]) < MIN_RATIO:
        broken.append(f"throughput is {ratio} of that in memory, at least {MIN_RATIO}")
    return {**result, "broken": broken}


def main() -> int:
    """The exit code: 1 if memory grew or the shards were too slow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=60, help="of training, per round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--read", metavar="SHARDS", help="read these only")
    options = parser.parse_args()
    if options.read:
        torch.set_num_threads(1)
        print(json.dumps(read_epoch(options.read)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TINYDIFFUSION_CACHE"] = f"{folder}/cache"
        result = run(Path(folder) / "shards", options)
    print(json.dumps(result, indent=1))
    return 1 if result["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
