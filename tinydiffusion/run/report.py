"""The report at the end of a run: what `evaluate` writes on its model, and the run's cost."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tinydiffusion import config as config_file
from tinydiffusion.evaluation.measurement import Measurement
from tinydiffusion.evaluation.rows import print_table, report_row
from tinydiffusion.evaluation.target import measure_target, model_target, save_report
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.protocols import Dataset, Evaluator, Score
from tinydiffusion.run.folder import REPORT
from tinydiffusion.training.trainer import TrainResult


def report_run(
    run_dir: Path,
    pipeline: TextToImage,
    evaluators: Mapping[str, Evaluator],
    reference: Dataset,
    train: Dataset,
    *,
    result: TrainResult,
    grid: Sequence[dict[str, str]],
    started: float,
    console: Console,
) -> list[dict[str, Any]]:
    """Measure the model of a run, print and write its report and return the rows.

    Args:
        run_dir: Folder of the run, whose `model` is saved already.
        pipeline: The same model.
        evaluators: Name -> evaluator.
        reference: Captioned pictures, which give the prompts and are compared with.
        train: The model's training set.
        result: Result of the training.
        grid: The pictures of the final grid, with their prompts.
        started: Time of the command's start, by `time.monotonic`.
        console: For the progress bar.
    """
    evaluation = pipeline.config.evaluation
    measurement = Measurement(evaluators, evaluation.options)
    target = model_target(
        pipeline, measurement, reference, train,
        num_images=evaluation.num_images, folder=run_dir / "model",
    )  # fmt: skip
    data = "train" if reference is train else "validation"
    target.describe(measurement, {"data": data, "train": "train"})
    rows = measure_target(measurement, target, console)
    if result.pictures_per_second:  # unknown where the training was done before this call
        speed = Score("pictures_per_second", result.pictures_per_second, result.pictures_seen)
        rows.append(report_row(speed, "trainer", {"device": target.context["device"]}))
    target.context |= {
        "run": str(run_dir),
        "config": config_file.to_dict(pipeline.config),
        "pictures_seen": result.pictures_seen,
        "training_seconds": result.seconds,
        "total_seconds": time.monotonic() - started,
    }
    print_table(rows, str(run_dir / REPORT))  # first: the file may fail to be written
    save_report(run_dir / REPORT, target, measurement, rows, {"grid": grid})
    return rows
