"""`tinydiffusion statistics`: what a metric needs of its reference, in one file."""

from pathlib import Path
from typing import Any

from rich.console import Console

from tinydiffusion.build import build_evaluators
from tinydiffusion.config import ConfigError
from tinydiffusion.evaluation.folder import MIN_PICTURES, FolderPictures
from tinydiffusion.evaluation.measurement import Measurement
from tinydiffusion.evaluation.session import run_session
from tinydiffusion.evaluation.statistics_file import write_statistics
from tinydiffusion.pictures.views import view_of

FAILED = 1

console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def statistics(
    folder: Path,
    metric: str,
    options: dict[str, dict[str, Any]],
    *,
    resize: int | list[int] | None,
    batch_size: int,
    out: Path,
) -> int:
    """Write the statistics of a folder's pictures.

    Returns:
        The exit code: 1 where a picture cannot be read, else 0.
    """
    evaluators = build_evaluators([metric], options)
    evaluator = evaluators[metric]
    if "reference" not in evaluator.needs:
        raise ConfigError(f"{metric} compares with no reference: it has no statistics")
    measurement = Measurement(evaluators, options)
    pictures = FolderPictures(
        "reference", folder, view=None if resize is None else view_of(resize), console=console
    )
    remarks = run_session(
        measurement, [pictures], {}, shard=(1, 1), saving=None, batch_size=batch_size,
        console=console,
    )  # fmt: skip
    for name, (_, reason) in measurement.failures.items():
        raise ConfigError(f"{name}: {reason}")
    number = len(pictures) - len(pictures.unreadable)
    if number < MIN_PICTURES:
        raise ConfigError(f"{number} of {len(pictures)} pictures in {folder} can be read: too few")
    write_statistics(out, metric, evaluator, pictures.about(), remarks)
    for remark in remarks:
        console.print(f"warning: {remark}")
    console.print(f"statistics of {number} pictures in {out}")
    return FAILED if pictures.unreadable else 0
