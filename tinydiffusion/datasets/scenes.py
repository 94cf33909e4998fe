"""ShapeScenes as a data set: scenes are drawn on the fly, without files."""

from collections.abc import Sequence
from typing import cast

import numpy as np

from tinydiffusion.protocols import Example
from tinydiffusion.scenes.captions import captions, short_captions
from tinydiffusion.scenes.font import MIN_SIDE
from tinydiffusion.scenes.render import render
from tinydiffusion.scenes.sampling import sample_scene
from tinydiffusion.scenes.vocabulary import CATEGORIES, SPLITS, Category, Scene, Split


class ScenesDataset:
    """Captioned scenes; example i depends on (`seed`, `split`, i) and the categories alone.

    Args:
        size: Side in pixels, even, in [16, 1024]; for spelling at least 32.
        num_scenes: Number of examples, at most 10 million.
        seed: Seed of the scenes, at least 0.
        split: "train", or "held_out" for the fifth of the combinations that "train" lacks.
        categories: Some of "one_object", "two_objects", "counting" and "spelling", used in turn.
        short_captions: Whether to add captions that leave out colours, the relation or the
            background, as GenEval's prompts do; they come after the full ones.

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(
        self,
        *,
        size: int = 32,
        num_scenes: int = 100_000,
        seed: int = 0,
        split: str = "train",
        categories: Sequence[str] = ("one_object", "two_objects"),
        short_captions: bool = False,
    ) -> None:
        _check(size, num_scenes, seed, split, categories)
        self.size = size
        self.num_scenes = num_scenes
        self.seed = seed
        self.split: Split = cast(Split, split)
        self.categories = cast(tuple[Category, ...], tuple(categories))
        self.short_captions = short_captions

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> Example:
        """Return an example: picture, all its captions and an id like "scenes-train-000017"."""
        scene = self.scene(index)
        return {
            "image": render(scene, self.size),
            "caption": captions(scene) + (short_captions(scene) if self.short_captions else []),
            "id": f"scenes-{self.split}-{index:06d}",
        }

    def scene(self, index: int) -> Scene:
        """Return the scene of example `index`.

        Raises:
            IndexError: `index` is not in [0, len(self)).
        """
        if not 0 <= index < self.num_scenes:
            raise IndexError(f"index {index} is not in [0, {self.num_scenes})")
        rng = np.random.default_rng((self.seed, SPLITS.index(self.split), index))
        category = self.categories[index % len(self.categories)]
        return sample_scene(rng, category, self.split)


def _check(size: int, num_scenes: int, seed: int, split: str, categories: Sequence[str]) -> None:
    if not 16 <= size <= 1024 or size % 2:
        raise ValueError(f"size={size!r} is not an even number from 16 to 1024; 32 is the default")
    if not 1 <= num_scenes <= 10_000_000:  # the order of an epoch is held in memory
        raise ValueError(f"num_scenes={num_scenes!r} is not in [1, 10_000_000]")
    if seed < 0:
        raise ValueError(f"seed={seed!r} is negative; take any number from 0 on")
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not one of {', '.join(SPLITS)}")
    unknown = [category for category in categories if category not in CATEGORIES]
    if unknown or not categories:
        raise ValueError(f"categories={categories!r}: give at least one of {', '.join(CATEGORIES)}")
    if "spelling" in categories and size < MIN_SIDE:
        raise ValueError(f"size={size!r} is too small for words; spelling needs {MIN_SIDE}")


PLUGIN = ScenesDataset
