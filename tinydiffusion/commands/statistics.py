"""`tinydiffusion statistics`: what a metric has to know of its reference, in one file."""

from pathlib import Path
from typing import Any

from rich.console import Console

from tinydiffusion.build import build_evaluators
from tinydiffusion.commands._folder import FolderPictures
from tinydiffusion.commands._measuring import Measurement
from tinydiffusion.commands._session import run_session
from tinydiffusion.commands._statistics_file import write_statistics
from tinydiffusion.config import ConfigError
from tinydiffusion.datasets._views import view_of

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
    """0 once the statistics of the folder's pictures are written."""
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
    write_statistics(out, metric, evaluator, pictures.about(), remarks)
    for remark in remarks:
        console.print(f"warning: {remark}")
    console.print(f"statistics of {len(pictures)} pictures in {out}")
    return 0
