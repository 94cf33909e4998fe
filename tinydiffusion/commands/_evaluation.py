"""A model measured in one call, as at the end of training."""

from collections.abc import Mapping
from typing import Any

from tinydiffusion.commands._measuring import Measurement, measure
from tinydiffusion.commands._sources import (
    DatasetPictures,
    ModelPictures,
    evaluation_prompts,
)
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.protocols import Dataset, Evaluator

BATCH = 64
MIN_REFERENCE = 10_000
"""Reference pictures are taken up to this number, or to the number generated where that is more."""


def evaluate_pipeline(
    pipeline: TextToImage,
    evaluators: Mapping[str, Evaluator],
    reference: Dataset,
    *,
    num_images: int,
    seed: int = 0,
    train: Dataset | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Report rows of a model, its prompts being captions of the reference set.

    Args:
        pipeline: The model.
        evaluators: By name; with none nothing is generated.
        reference: Captioned pictures.
        num_images: Pictures to make.
        seed: Of picture 0.
        train: What it was trained on, for evaluators that ask for it.
        options: More options of `TextToImage.generate_batches`.
    """
    measurement = Measurement(evaluators)
    prompts = evaluation_prompts(reference, num_images)
    measure(measurement, ModelPictures(pipeline, prompts, seed=seed, **options), BATCH)
    measure(measurement, reference_pictures(reference, num_images), BATCH)
    if train is not None:
        measure(measurement, DatasetPictures("train", train), BATCH)
    return measurement.rows()


def reference_pictures(reference: Dataset, num_images: int) -> DatasetPictures:
    """As many examples of the reference set as are compared with."""
    return DatasetPictures("reference", reference, max(num_images, MIN_REFERENCE))
