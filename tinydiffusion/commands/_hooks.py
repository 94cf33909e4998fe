"""What happens between training steps: validation loss and sample grids."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from tinydiffusion.commands._grid import save_grid
from tinydiffusion.commands._sources import evaluation_prompts
from tinydiffusion.config import SamplingConfig
from tinydiffusion.errors import NonFiniteError
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.protocols import Batch, Dataset, Objective
from tinydiffusion.survey import captions_of, spread
from tinydiffusion.training.data_order import generator_for


def grid_prompts(
    sampling: SamplingConfig, captions: Sequence[str], validation: Dataset | None
) -> tuple[list[str], str]:
    """Choose the prompts of a run's grids: those of its config, else captions of its pictures.

    Args:
        sampling: Section of the config.
        captions: Of the training set; at least one.
        validation: Held-out pictures, whose captions make up half of the prompts.

    Returns:
        The prompts, those of training first, and in words where they come from.
    """
    if sampling.prompts:
        return list(sampling.prompts), f"the {len(sampling.prompts)} sampling.prompts"
    held_out = 0 if validation is None else sampling.num_prompts // 2
    trained = sampling.num_prompts - held_out
    different = list(dict.fromkeys(captions))
    places = spread(len(different), trained)
    prompts = [different[places[i % len(places)]] for i in range(trained)]
    origin = f"{trained} captions of the training set"
    if validation is not None and held_out:
        prompts += evaluation_prompts(validation, held_out)
        origin += f", then {held_out} of the validation set"
    return prompts, origin


class SampleGrid:
    """The same prompts and seeds every time, so that grids can be compared over the run."""

    def __init__(
        self, pipeline: TextToImage, prompts: Sequence[str], *, every: int, seed: int
    ) -> None:
        self.pipeline = pipeline
        self.prompts = list(prompts)
        self.every = every
        self.seed = seed

    def __call__(
        self, pictures_seen: int, run_dir: Path, modules: nn.Module
    ) -> dict[str, float | str]:
        """Writes `samples/<pictures seen>.png` and reports its path.

        A picture that is not finite costs the grid, not the run.
        """
        file = run_dir / "samples" / f"{pictures_seen:08d}.png"
        try:
            images = self.pipeline.generate(self.prompts, seed=self.seed)
        except NonFiniteError as error:
            warnings.warn(f"no grid at picture {pictures_seen}: {error}", stacklevel=2)
            return {}
        save_grid(file, images, self.prompts, seed=self.seed)
        return {"grid": str(file)}


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
        """Means over the pictures: of the loss, and of what else the objective reports."""
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
    examples = [dataset[i] for i in places]
    return {
        "image": torch.stack([example["image"] for example in examples]),
        "caption": [captions_of(example)[0] for example in examples],
        "id": [example["id"] for example in examples],
        "position": list(places),
    }
