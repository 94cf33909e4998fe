"""The report that a run ends with: the same as `evaluate` writes of its model, and what it took."""

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
        run_dir: The run, whose `model` is saved already.
        pipeline: The same model.
        evaluators: By name.
        reference: Captioned pictures: prompts, and what is compared with.
        train: What the model was trained on.
        result: Of the training.
        grid: The pictures of the final grid, with their prompts.
        started: When the command was started, by `time.monotonic`.
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
    if result.pictures_per_second:  # none where this call found the training done
        speed = Score("pictures_per_second", result.pictures_per_second, result.pictures_seen)
        rows.append(report_row(speed, "trainer", {"device": target.context["device"]}))
    target.context |= {
        "run": str(run_dir),
        "config": config_file.to_dict(pipeline.config),
        "pictures_seen": result.pictures_seen,
        "training_seconds": result.seconds,
        "total_seconds": time.monotonic() - started,
    }
    print_table(rows, str(run_dir / REPORT))  # first, whatever becomes of the file
    save_report(run_dir / REPORT, target, measurement, rows, {"grid": grid})
    return rows
