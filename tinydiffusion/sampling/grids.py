"""Sample grids during a run: the same prompts and seeds every time."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from tinydiffusion.config import SamplingConfig
from tinydiffusion.pictures.grid import save_grid
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.protocols import Dataset
from tinydiffusion.runtime.errors import NonFiniteError
from tinydiffusion.survey import evaluation_prompts, spread


def grid_prompts(
    sampling: SamplingConfig, captions: Sequence[str], validation: Dataset | None
) -> tuple[list[str], str]:
    """Choose the prompts of a run's grids: those of its config, or else captions of its pictures.

    Args:
        sampling: Section of the config.
        captions: Captions of the training set; at least one.
        validation: Held-out pictures, whose captions make up half of the prompts.

    Returns:
        The prompts, those of training first, and a text on their origin.
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
    """Sample grids with the same prompts and seeds, so that they can be compared over the run."""

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
        """Write `samples/<pictures seen>.png` and return its path.

        If a picture is not finite, the grid is left out with a warning.
        """
        file = run_dir / "samples" / f"{pictures_seen:08d}.png"
        try:
            images = self.pipeline.generate(self.prompts, seed=self.seed)
        except NonFiniteError as error:
            warnings.warn(f"no grid at picture {pictures_seen}: {error}", stacklevel=2)
            return {}
        save_grid(file, images, self.prompts, seed=self.seed)
        return {"grid": str(file)}
