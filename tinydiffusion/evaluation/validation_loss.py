"""The loss on held-out pictures, during a run."""

from pathlib import Path

import torch
from torch import nn

from tinydiffusion.pictures.usable import usable
from tinydiffusion.protocols import Batch, Dataset, Objective
from tinydiffusion.survey import captions_of
from tinydiffusion.training.data_order import generator_for


class ValidationLoss:
    """The loss on held-out pictures with the same noise every time."""

    def __init__(
        self, objective: Objective, dataset: Dataset, *, every: int, device: torch.device,
        bfloat16: bool, num_pictures: int = 256, batch_size: int = 64,
    ) -> None:  # fmt: skip
        self.objective = objective
        self.every = every
        self.device = device
        self.bfloat16 = bfloat16
        total = min(num_pictures, len(dataset))
        self.batches = [
            _batch(dataset, range(first, min(first + batch_size, total)))
            for first in range(0, total, batch_size)
        ]

    def __call__(
        self, pictures_seen: int, run_dir: Path, modules: nn.Module
    ) -> dict[str, float | str]:
        """Compute means over the pictures, of the loss and of what else the objective reports."""
        totals: dict[str, float] = {}
        for batch in self.batches:
            image = batch["image"].to(self.device)
            generators = [generator_for(0, "validation", place) for place in batch["position"]]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                loss, scalars = self.objective.loss({**batch, "image": image}, generators)
            for name, value in {**scalars, "loss": loss}.items():
                totals[name] = totals.get(name, 0.0) + float(value) * len(image)
        count = sum(len(batch["id"]) for batch in self.batches)
        return {f"validation_{name}": total / count for name, total in totals.items()}


def _batch(dataset: Dataset, places: range) -> Batch:
    examples = list(usable(dataset, places))
    return {
        "image": torch.stack([example["image"] for example in examples]),
        "caption": [captions_of(example)[0] for example in examples],
        "id": [example["id"] for example in examples],
        "position": list(places),
    }
