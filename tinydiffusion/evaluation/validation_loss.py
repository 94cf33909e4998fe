"""The loss on held-out pictures, during a run."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from tinydiffusion.pictures.usable import read_usable
from tinydiffusion.protocols import Batch, Dataset, Example, Objective
from tinydiffusion.survey import captions_of
from tinydiffusion.training.data_order import collate, generator_for, on_tensors


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
        read = ((place, read_usable(lambda place=place: dataset[place])) for place in range(total))
        found = [(place, example) for place, example in read if example is not None]
        self.batches = [
            _batch(found[first : first + batch_size]) for first in range(0, len(found), batch_size)
        ]

    def __call__(
        self, pictures_seen: int, run_dir: Path, modules: nn.Module
    ) -> dict[str, float | str]:
        """Compute means over the pictures, of the loss and of what else the objective reports."""
        totals: dict[str, float] = {}
        for batch in self.batches:
            batch = on_tensors(batch, lambda tensor: tensor.to(self.device))
            generators = [generator_for(0, "validation", place) for place in batch["position"]]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                loss, scalars = self.objective.loss(batch, generators)
            for name, value in {**scalars, "loss": loss}.items():
                totals[name] = totals.get(name, 0.0) + float(value) * len(batch["id"])
        count = sum(len(batch["id"]) for batch in self.batches)
        return {f"validation_{name}": total / count for name, total in totals.items()}


def _batch(found: Sequence[tuple[int, Example]]) -> Batch:
    """Stack examples with their first captions; the place of each is its position."""
    places, examples = zip(*found, strict=True)
    return collate(examples, [captions_of(example)[0] for example in examples], places)
