"""Running evaluators over pictures, and the report they end in."""

import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    batches = pipeline.generate_batches(prompts, seed=seed, **options)
    total = max(num_images, MIN_REFERENCE)
    return run(
        evaluators,
        generated_batches(batches, prompts),
        picture_batches("reference", reference, total),
    )


def run(
    evaluators: Mapping[str, Evaluator],
    generated: Iterable[EvalBatch],
    reference: Iterable[EvalBatch],
) -> list[dict[str, Any]]:
    """Report rows of all evaluators; each sees only the sources that it needs."""
    for source, batches in (("generated", generated), ("reference", reference)):
        wanting = [e for e in evaluators.values() if source in e.needs]
        for batch in batches if wanting else ():
            for evaluator in wanting:
                evaluator.update(batch)
    return [
        report_row(score, name, evaluator.provenance())
        for name, evaluator in evaluators.items()
        for score in evaluator.compute()
    ]


def report_row(score: Score, evaluator: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """One row of a report, JSON-able."""
    row = score._asdict()
    row["ci95"] = None if score.ci95 is None else list(score.ci95)
    row["warnings"] = list(score.warnings)
    return {**row, "evaluator": evaluator, "provenance": dict(provenance)}


def write_report(file: Path, rows: Sequence[Mapping[str, Any]], context: Mapping[str, Any]) -> None:
    """Write the report as JSON."""
    report = {
        "schema": SCHEMA,
        "context": {**context, "environment": environment()},
        "results": list(rows),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


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
    """Print name, value, interval and n of every row, and then every warning once."""
    table = Table(title=title, title_justify="left")
    table.add_column("result")
    for column in ("value", "95 % interval", "n"):
        table.add_column(column, justify="right")
    for row in rows:
        interval = "" if row["ci95"] is None else "{:.3f} - {:.3f}".format(*row["ci95"])
        table.add_row(row["name"], f"{row['value']:.4g}", interval, str(row["n"]))
    console = Console(highlight=False, markup=False)
    console.print(table)
    for warning in dict.fromkeys(w for row in rows for w in row["warnings"]):
        console.print(f"warning: {warning}", soft_wrap=True)
