"""A run of a small denoising model by as many processes as torchrun has started; for tests.

Arguments: run folder, and settings as JSON: `strategy`, `resume`, `num_pictures`, `die_at`
(rank, position): there that process kills itself.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from tinydiffusion.build import build_objective, captions_of
from tinydiffusion.config import from_dict
from tinydiffusion.datasets.scenes import ScenesDataset
from tinydiffusion.errors import RunError
from tinydiffusion.processes import joined, naming_lost_processes
from tinydiffusion.training.data_order import Batches
from tinydiffusion.training.learner import Learner
from tinydiffusion.training.trainer import Trainer

CONFIG = {
    "text_encoder": {"name": "clip", "width": 32, "layers": 1, "heads": 2},
    "network": {"name": "unet", "channels": [16, 32], "layers_per_block": 1, "patch_size": 4},
}


class Seen:
    """A data set that writes down what was asked of it."""

    def __init__(self, dataset):
        self.dataset, self.ids = dataset, []

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        example = self.dataset[index]
        self.ids.append(example["id"])
        return example




def main(run_dir: Path, settings: dict) -> int:
    dataset = Seen(ScenesDataset(num_scenes=60))
    captions = [caption for i in range(60) for caption in captions_of(dataset.dataset[i])]
    with joined("cpu") as processes, naming_lost_processes():
        objective = build_objective(from_dict(CONFIG), captions)
        if die_at := settings.get("die_at"):
            rank, position = die_at
            loss = objective.loss

            def deadly(batch, generators):
                if processes.rank == rank and batch["position"][0] >= position:
                    os.kill(os.getpid(), signal.SIGKILL)
                return loss(batch, generators)

            objective.loss = deadly
        learner = Learner(
            objective,
            learning_rate=1e-3,
            muon_modules=settings.get("muon_modules", []),
            precision="float32",
            processes=processes,
            strategy=settings.get("strategy", "ddp"),
        )
        run = Trainer(
            learner,
            Batches(dataset, 12, 3, share=(processes.rank, processes.count)),
            run_dir=run_dir,
            num_pictures=settings.get("num_pictures", 600),
            identity={},
            warmup_pictures=60,
            checkpoint_every=120,
            keep_checkpoints=99,
            log_every=12,
        )
        if settings.get("resume"):
            run.resume()
        run.train()
        parts = processes.gather(dataset.ids)
        if processes.is_main:
            (run_dir / "ids.json").write_text(json.dumps(parts))
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
