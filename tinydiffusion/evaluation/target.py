"""Pair what is measured with what it is compared with, and write the one report of it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from tinydiffusion.config import ConfigError, SamplingConfig, to_dict
from tinydiffusion.evaluation.measurement import Measurement
from tinydiffusion.evaluation.report.illustrations import illustrations
from tinydiffusion.evaluation.rows import write_report
from tinydiffusion.evaluation.session import run_session
from tinydiffusion.evaluation.sources import DatasetPictures, ModelPictures, Pictures
from tinydiffusion.evaluation.statistics_file import StatisticsFile
from tinydiffusion.model_folder.layout import WEIGHTS
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.protocols import Dataset, Evaluator
from tinydiffusion.runtime.parts import WHOLE
from tinydiffusion.sampling.job import model_sha256
from tinydiffusion.sampling.prompts import prompts_sha256
from tinydiffusion.survey import evaluation_prompts

BATCH = 64
MIN_REFERENCE = 10_000
"""Reference pictures are taken up to this number, or to the number generated where that is more."""


@dataclass
class Target:
    """Pictures of every source that the metrics need, ready to be read.

    Attributes:
        generated: The pictures to be measured.
        reference: The pictures to compare with, where a metric needs them.
        train: The model's training pictures, where a metric needs them.
        context: What the numbers depend on.
        remarks: Warnings for every row.
        pipeline: The model, where one is measured.
        sampling: The model's sampling settings.
    """

    generated: Pictures
    reference: Pictures | StatisticsFile | None
    train: Pictures | None
    context: dict[str, Any]
    remarks: list[str] = field(default_factory=list)
    pipeline: TextToImage | None = None
    sampling: SamplingConfig | None = None

    def sources(self) -> list[Pictures]:
        """List the sources whose pictures can be read."""
        each = (self.generated, self.reference, self.train)
        return [p for p in each if p is not None and not isinstance(p, StatisticsFile)]

    def describe(self, measurement: Measurement, told: Mapping[str, Any]) -> None:
        """Complete the context with the metrics' options and the pictures' contents.

        Args:
            measurement: The metrics.
            told: Further entries.

        Raises:
            ConfigError: the pictures are of different shapes.
        """
        about = {"generated": self.generated.about()}
        for source, pictures in (("reference", self.reference), ("train", self.train)):
            if pictures is not None:
                about[source] = pictures.about()
        _check_shapes(about)
        prompts = list(self.generated.prompts) if any(self.generated.prompts) else None
        self.context |= {
            **told,
            "metrics": measurement.names,
            "options": measurement.options,
            "sources": about,
            "prompts_sha256": prompts_sha256(prompts or []),
            "prompts": prompts,
        }


def evaluate_pipeline(
    pipeline: TextToImage,
    evaluators: Mapping[str, Evaluator],
    reference: Dataset,
    *,
    num_images: int,
    seed: int = 0,
    train: Dataset | None = None,
    sampling: SamplingConfig | None = None,
) -> list[dict[str, Any]]:
    """Measure a model in this process and return its rows.

    Args:
        pipeline: The model.
        evaluators: Name -> evaluator; without any, nothing is generated.
        reference: Captioned pictures.
        num_images: Pictures to make.
        seed: Seed of picture 0.
        train: The model's training set, for evaluators that need it.
        sampling: Sampler, steps, guidance; None = the model's defaults.
    """
    measurement = Measurement(evaluators)
    target = model_target(
        pipeline, measurement, reference, train, num_images=num_images, seed=seed, sampling=sampling
    )
    return measure_target(measurement, target, Console(quiet=True, force_terminal=False))


def model_target(
    pipeline: TextToImage,
    measurement: Measurement,
    reference: Dataset,
    train: Dataset | None,
    *,
    num_images: int,
    seed: int = 0,
    sampling: SamplingConfig | None = None,
    folder: Path | None = None,
) -> Target:
    """Pair the pictures that a model generates from captions of a reference set with that set.

    Args:
        pipeline: The model.
        measurement: What is to be measured.
        reference: Captioned pictures.
        train: The model's training set.
        num_images: Pictures to make.
        seed: Seed of picture 0.
        sampling: Sampler, steps, guidance; None = the model's defaults.
        folder: Where the model is saved, for the context of a report.
    """
    prompts = evaluation_prompts(reference, num_images)
    generated = ModelPictures(pipeline, prompts, seed=seed, sampling=sampling)
    wanted = measurement.needing("train")
    return Target(
        generated,
        reference_pictures(reference, num_images),
        DatasetPictures("train", train) if train is not None and wanted else None,
        {} if folder is None else model_context(folder, generated),
    )


def measure_target(
    measurement: Measurement, target: Target, console: Console
) -> list[dict[str, Any]]:
    """Pass the evaluators all pictures that they need, in this process, and return the rows."""
    remarks = run_session(
        measurement, target.sources(), target.context, shard=WHOLE, saving=None,
        batch_size=BATCH, console=console,
    )  # fmt: skip
    return measurement.rows([*target.remarks, *remarks])


def reference_pictures(reference: Dataset, num_images: int) -> DatasetPictures:
    """Take as many examples of the reference set as are compared with."""
    return DatasetPictures("reference", reference, max(num_images, MIN_REFERENCE))


def model_context(folder: Path, generated: ModelPictures) -> dict[str, Any]:
    """Describe which model generates the pictures, and how.

    Args:
        folder: Folder of the model.
        generated: Pictures of the model.
    """
    with (folder / "network" / WEIGHTS).open("rb") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()
    return {
        "kind": "model",
        "target": str(folder),
        "model_sha256": model_sha256(folder),
        "weights_sha256": digest,
        "sampling": to_dict(generated.sampling),
        "seed": generated.seed,
        "precision": generated.pipeline.precision,
        "device": generated.pipeline.device.type,
        "batch_size": generated.block,
    }


def save_report(
    file: Path,
    target: Target,
    measurement: Measurement,
    rows: Sequence[dict[str, Any]],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write the report of an evaluation: its rows, their context, and pictures of both.

    Args:
        file: Path of the report.
        target: What was measured, described.
        measurement: The metrics, for their figures.
        rows: The results.
        more: Further sections.
    """
    shown = illustrations(measurement, target.generated, rows)
    write_report(file, rows, target.context, {**(more or {}), **shown})


def _check_shapes(about: dict[str, dict[str, Any]]) -> None:
    shapes = {source: a["shape"] for source, a in about.items() if "shape" in a}
    expected = shapes["generated"]
    for source, shape in shapes.items():
        if shape != expected:
            wanted, got = ("{2}x{1}".format(*each) for each in (expected, shape))
            raise ConfigError(
                f"the generated pictures are {wanted}, those of the {source} {got}; make them one "
                "size with --resize N"
            )
