"""Runs of a small denoising model, one after the other, by the processes of torchrun; for tests.

Its argument is a JSON list of jobs: `run_dir` and the other keys of `JOB`.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from tinydiffusion.build import build_objective
from tinydiffusion.config import from_dict
from tinydiffusion.datasets.scenes import ScenesDataset
from tinydiffusion.runtime.errors import RunError
from tinydiffusion.runtime.processes import joined, naming_lost_processes
from tinydiffusion.survey import captions_of
from tinydiffusion.training.data_order import Batches
from tinydiffusion.training.learner import Learner
from tinydiffusion.training.trainer import Trainer

CONFIG = {
    "text_encoder": {"name": "clip", "width": 32, "layers": 1, "heads": 2},
    "network": {"name": "unet", "channels": [16, 32], "layers_per_block": 1, "patch_size": 4},
}
JOB = {
    "strategy": "ddp",
    "muon_modules": [],
    "accumulation": 1,
    "num_pictures": 600,
    "resume": False,
    "nan_at": None,  # rank and position: there the loss of that process is NaN
    "die_at": None,  # rank and position: there that process kills itself
}


class Noting:
    """A data set that notes what was asked of it."""

    def __init__(self):
        self.dataset, self.ids = ScenesDataset(num_scenes=60), []

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        example = self.dataset[index]
        self.ids.append(example["id"])
        return example


def main(jobs: list[dict]) -> None:
    with joined("cpu") as processes, naming_lost_processes():
        for job in jobs:
            run({**JOB, **job}, processes)


def run(job, processes):
    dataset, run_dir = Noting(), Path(job["run_dir"])
    captions = [caption for example in dataset.dataset for caption in captions_of(example)]
    objective = build_objective(from_dict(CONFIG), captions)
    learner = Learner(
        Faulty(objective, job, processes.rank),
        learning_rate=1e-3,
        muon_modules=job["muon_modules"],
        precision="float32",
        processes=processes,
        strategy=job["strategy"],
    )
    share = (processes.rank, processes.count)
    trainer = Trainer(
        learner,
        Batches(dataset, 12 // job["accumulation"], 3, share=share),
        accumulation=job["accumulation"],
        run_dir=run_dir,
        num_pictures=job["num_pictures"],
        identity={},
        warmup_pictures=60,
        checkpoint_every=120,
        keep_checkpoints=99,
        log_every=12,
    )
    if job["resume"]:
        trainer.resume()
    trainer.train()
    told = processes.gather((dataset.ids, trainer.skipped_steps))
    if processes.is_main:
        (run_dir / "told.json").write_text(json.dumps(told))


class Faulty(nn.Module):
    """An objective whose loss goes wrong where the job says."""

    def __init__(self, objective, job, rank):
        super().__init__()
        self.objective, self.rank = objective, rank
        self.nan_at, self.die_at = job["nan_at"], job["die_at"]

    def loss(self, batch, generators):
        value, scalars = self.objective.loss(batch, generators)
        if self._is_at(self.die_at, batch):
            os.kill(os.getpid(), signal.SIGKILL)
        return value * (float("nan") if self._is_at(self.nan_at, batch) else 1), scalars

    def _is_at(self, place, batch):
        return place is not None and place[0] == self.rank and place[1] in batch["position"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        main(json.loads(sys.argv[1]))
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
