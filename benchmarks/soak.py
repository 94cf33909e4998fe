"""Trains for many steps and checks that memory, open files and Python objects stay as they are.

python benchmarks/soak.py

Prints one JSON object; the exit code is 1 if something grew. See benchmarks/README.md.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from tinydiffusion import config as config_file
from tinydiffusion.build import build_dataset, build_objective, build_validation
from tinydiffusion.evaluation.validation_loss import ValidationLoss
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.runtime.allocator import keep_freed_memory
from tinydiffusion.sampling.grids import SampleGrid
from tinydiffusion.survey import survey
from tinydiffusion.training.data_order import Batches
from tinydiffusion.training.learner import Learner
from tinydiffusion.training.trainer import Trainer

CONFIG = {
    "dataset": {"name": "scenes", "size": 16, "num_scenes": 64},
    "validation": {"split": "held_out", "num_scenes": 4},
    "text_encoder": {"name": "clip", "width": 8, "layers": 1, "heads": 2},
    "network": {
        "name": "unet", "channels": [8], "head_dim": 8, "attention_levels": [],
        "layers_per_block": 1, "patch_size": 4, "preview_size": 4,
    },
    "sampling": {"steps": 1},
}  # fmt: skip
MAX_GROWTH = 0.02


class Reading(NamedTuple):
    """What the process holds at one step."""

    step: int
    rss_mib: float
    files: int
    threads: int
    objects: int


class Gauge:
    """A hook that reads what the process holds; the batch size is 1, so pictures are steps."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.readings: list[Reading] = []

    def __call__(self, pictures_seen: int, run_dir: Path, modules: nn.Module) -> dict[str, float]:  # noqa: ARG002
        """One reading, kept."""
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        reading = Reading(
            step=pictures_seen,
            rss_mib=pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
            files=len(list(Path("/proc/self/fd").iterdir())),
            threads=len(list(Path("/proc/self/task").iterdir())),
            objects=len(gc.get_objects()),
        )
        self.readings.append(reading)
        return {}


def soak(run_dir: Path, steps: int) -> list[Reading]:
    """Twenty readings of a real denoising run with checkpoints, rows, grids and validation."""
    config = config_file.from_dict(CONFIG)
    dataset, validation = build_dataset(config.dataset), build_validation(config)
    assert validation is not None
    captions, _ = survey(dataset)
    objective: Any = build_objective(config, captions)
    pipeline = TextToImage(
        objective.denoiser.network, objective.text_encoder, config, dataset[0]["image"].shape
    )
    gauge, cpu, every = Gauge(steps // 20), torch.device("cpu"), steps // 40
    hooks = [
        SampleGrid(pipeline, captions[:1], every=every, seed=0),
        ValidationLoss(objective, validation, every=every, device=cpu, bfloat16=False),
        gauge,
    ]
    trainer = Trainer(
        Learner(objective, precision="float32"),
        Batches(dataset, 1),
        run_dir=run_dir,
        num_pictures=steps,
        identity={},
        hooks=hooks,
        checkpoint_every=steps // 200,
        log_every=steps // 1000,
    )
    trainer.train()
    return gauge.readings


def summary(readings: Sequence[Reading]) -> dict[str, Any]:
    """First and last reading of the last nine tenths of a run, and what grew between them."""
    last = readings[-1]
    first = next(reading for reading in readings if reading.step >= last.step / 10)
    after = [reading for reading in readings if reading.step >= first.step]
    return {
        "first": first._asdict(),
        "last": last._asdict(),
        "rss_growth": round(last.rss_mib / first.rss_mib - 1, 5),
        "object_growth": round(last.objects / first.objects - 1, 5),
        "most_rss_mib": max(reading.rss_mib for reading in after),
        "files": sorted({reading.files for reading in after}),
        "threads": sorted({reading.threads for reading in after}),
    }


def main() -> int:
    """The exit code: 1 if something grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        result = summary(soak(Path(folder), options.steps))
    result["flat"] = (
        max(result["rss_growth"], result["object_growth"]) < MAX_GROWTH
        and len(result["files"]) == len(result["threads"]) == 1
    )
    print(json.dumps(result, indent=1))
    return 0 if result["flat"] else 1


if __name__ == "__main__":
    sys.exit(main())
