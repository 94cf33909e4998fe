"""Running evaluators over pictures, and the report they end in."""

import json
import math
import platform
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tinydiffusion import __version__
from tinydiffusion.build import captions_of, spread
from tinydiffusion.durable import replace_file
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.protocols import Dataset, EvalBatch, Evaluator, Score

SCHEMA = "tinydiffusion.eval/1"
REFERENCE_BATCH = 64
MIN_REFERENCE = 10_000
"""Reference pictures are taken up to this number, or to the number generated where that is more."""


def evaluation_prompts(dataset: Dataset, num_images: int) -> list[str]:
    """The first caption of examples spread over the set; of all in turn where there are too few."""
    count = len(dataset)
    places = spread(count, num_images)
    places = [places[i % len(places)] for i in range(num_images)]
    return [captions_of(dataset[place])[0] for place in places]


def picture_batches(source: str, dataset: Dataset, limit: int | None = None) -> Iterator[EvalBatch]:
    """The pictures of a data set with their first captions, at most `limit` of them."""
    total = len(dataset) if limit is None else min(limit, len(dataset))
    for first in range(0, total, REFERENCE_BATCH):
        numbers = range(first, min(first + REFERENCE_BATCH, total))
        examples = [dataset[i] for i in numbers]
        images = torch.stack([example["image"] for example in examples])
        yield eval_batch(source, first, images, [captions_of(example)[0] for example in examples])


def generated_batches(
    images: Iterable[UInt8[Tensor, "N C H W"]], prompts: Sequence[str]
) -> Iterator[EvalBatch]:
    """Batches of pictures with the prompts that asked for them, numbered from 0."""
    first = 0
    for batch in images:
        yield eval_batch("generated", first, batch, prompts[first : first + len(batch)])
        first += len(batch)


def eval_batch(
    source: str, first: int, images: UInt8[Tensor, "N C H W"], prompts: Sequence[str]
) -> EvalBatch:
    """A batch of consecutively numbered pictures."""
    numbers = torch.arange(first, first + len(images))
    return {"source": source, "id": numbers, "image": images, "prompt": list(prompts)}


def evaluate_pipeline(
    pipeline: TextToImage,
    evaluators: Mapping[str, Evaluator],
    reference: Dataset,
    *,
    num_images: int,
    seed: int = 0,
    **options: Any,
) -> list[dict[str, Any]]:
    """Report rows of a model, its prompts being captions of the reference set.

    Args:
        pipeline: The model.
        evaluators: By name; with none nothing is generated.
        reference: Captioned pictures.
        num_images: Pictures to make.
        seed: Of picture 0.
        options: More options of `TextToImage.generate_batches`.
    """
    prompts = evaluation_prompts(reference, num_images)
    images = pipeline.generate_batches(prompts, seed=seed, **options)
    total = max(num_images, MIN_REFERENCE)
    return run(
        evaluators,
        generated_batches(images, prompts),
        picture_batches("reference", reference, total),
    )


def run(
    evaluators: Mapping[str, Evaluator],
    generated: Iterable[EvalBatch],
    reference: Iterable[EvalBatch],
    beat: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Report rows of all evaluators; each sees only the sources that it needs.

    An evaluator that raises has one row with `value` None and an `error`; the others go on.

    Args:
        evaluators: By name.
        generated: Made pictures.
        reference: Real ones.
        beat: Called whenever something has moved, see `training/watchdog.py`.
    """
    errors: dict[str, str] = {}
    for source, batches in (("generated", generated), ("reference", reference)):
        wanting = {name: e for name, e in evaluators.items() if source in e.needs}
        for batch in batches if wanting else ():
            if not (well := [name for name in wanting if name not in errors]):
                break
            for name in well:
                with _isolated(name, errors):
                    wanting[name].update(batch)
                beat()
    rows = []
    for name, evaluator in evaluators.items():
        rows += _rows(name, evaluator, errors)
        beat()
    return rows


def _rows(name: str, evaluator: Evaluator, errors: dict[str, str]) -> list[dict[str, Any]]:
    rows = []
    if name not in errors:
        with _isolated(name, errors):
            provenance = evaluator.provenance()
            rows = [report_row(score, name, provenance) for score in evaluator.compute()]
    if name in errors:
        failed = report_row(Score(name, math.nan, 0), name, {})
        return [{**failed, "error": errors[name]}]
    return rows


@contextmanager
def _isolated(name: str, errors: dict[str, str]) -> Iterator[None]:
    """What an evaluator raises is noted and costs its own numbers only."""
    try:
        yield
    except Exception as error:  # anything: whoever wrote the plug-in decides what it raises
        place = traceback.extract_tb(error.__traceback__)[-1]
        message = " ".join(str(error).split())[:500]
        where = f"{Path(place.filename).name}:{place.lineno}"
        errors[name] = f"{type(error).__name__}: {message} ({where})"


def report_row(score: Score, evaluator: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """One row of a report, JSON-able: numbers that are not finite become None and are named."""
    row = {**score._asdict(), "evaluator": evaluator, "provenance": dict(provenance)}
    lost = [key for key, value in row.items() if not _is_finite(value)]
    unfit = [f"{score.name}: {key} is not finite" for key in lost if key != "value"]
    row = {**finite(row), "warnings": [*score.warnings, *unfit]}
    row["ci95"] = None if "ci95" in lost else row["ci95"]
    return {**row, "error": f"the value is {score.value}"} if "value" in lost else row


def _is_finite(value: Any) -> bool:
    """Whether there is no NaN or infinity inside; what is no JSON at all raises TypeError."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def finite(value: Any) -> Any:
    """The value with lists for tuples and with None for every NaN and infinity inside."""
    if isinstance(value, Mapping):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_report(file: Path, rows: Sequence[Mapping[str, Any]], context: Mapping[str, Any]) -> None:
    """Write the report as JSON; a reader sees the whole of it, or the report before."""
    report = {
        "schema": SCHEMA,
        "context": {**context, "environment": environment()},
        "results": list(rows),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(finite(report), indent=1, ensure_ascii=False, allow_nan=False)
    replace_file(file, (text + "\n").encode(errors="backslashreplace"))


def environment() -> dict[str, Any]:
    """Versions and machine, for the report."""
    packages = ("torch", "diffusers", "open_clip_torch")
    return {
        "tinydiffusion": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        **{package: version(package) for package in packages},
    }


def print_table(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Print name, value, interval and n of every row, then every warning once, then errors."""
    table = Table(title=title, title_justify="left")
    table.add_column("result")
    for column in ("value", "95 % interval", "n"):
        table.add_column(column, justify="right")
    for row in rows:
        interval = "" if row["ci95"] is None else "{:.3f} - {:.3f}".format(*row["ci95"])
        value = "failed" if row["value"] is None else f"{row['value']:.4g}"
        table.add_row(row["name"], value, interval, str(row["n"]))
    console = Console(highlight=False, markup=False)
    console.print(table)
    for warning in dict.fromkeys(w for row in rows for w in row["warnings"]):
        console.print(f"warning: {warning}", soft_wrap=True)
    for row in rows:
        if "error" in row:
            console.print(f"error: {row['name']}: {row['error']}", soft_wrap=True)
