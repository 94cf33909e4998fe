"""`tinydiffusion evaluate`: a model or a folder of samples in, a report out."""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import UInt8
from rich.console import Console
from torch import Tensor

from tinydiffusion.build import (
    build_dataset,
    build_evaluators,
    build_validation,
    pick_device,
)
from tinydiffusion.commands._evaluation import (
    MIN_REFERENCE,
    REFERENCE_BATCH,
    evaluation_prompts,
    generated_batches,
    picture_batches,
    print_table,
    run,
    write_report,
)
from tinydiffusion.commands._pictures import own_sizes, read_picture, sample_file
from tinydiffusion.commands._sampling import make_samples, model_sha256
from tinydiffusion.config import ConfigError
from tinydiffusion.model_folder.layout import INDEX, WEIGHTS
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.protocols import Dataset, EvalBatch, Evaluator, Selective
from tinydiffusion.training.precision import Precision
from tinydiffusion.training.watchdog import Watchdog

FAILED = 1
MAX_REFERENCE = 10**8

console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


class _Task(NamedTuple):
    """What is measured."""

    generated: Iterable[EvalBatch]
    reference: Iterable[EvalBatch]
    context: dict[str, Any]  # of the report
    marks: list[str]  # warnings that concern every number


def evaluate(
    target: Path,
    metrics: Sequence[str],
    options: dict[str, dict[str, Any]],
    *,
    data: str | None,
    num_images: int,
    out: Path | None,
    samples: Path | None,
    seed: int,
    batch_size: int,
    overrides: dict[str, Any],
    device: str,
    precision: Precision,
    hang_minutes: float | None,
    trust_plugins: bool,
) -> int:
    """0 once every metric is printed and, with `out`, written; 1 where one of them failed."""
    evaluators = build_evaluators(metrics, options)
    if (target / INDEX).is_file():
        pipeline = TextToImage.from_pretrained(
            target, device=pick_device(device), precision=precision, trust_plugins=trust_plugins
        )
        how = {
            "sampling": dataclasses.replace(pipeline.config.sampling, **overrides),
            "seed": seed,
            "batch_size": batch_size,
        }
        task = _task_of_model(target, pipeline, data, num_images, samples, how)
    else:
        if unfit := [*overrides, *(["samples"] if samples else [])]:
            raise ConfigError(f"{target} holds samples, not a model: leave out {', '.join(unfit)}")
        task = _task_of_samples(target, evaluators, data, num_images)
    with Watchdog(None if hang_minutes is None else 60 * hang_minutes) as watchdog:
        rows = run(evaluators, task.generated, task.reference, watchdog.beat)
    rows = [{**row, "warnings": [*row["warnings"], *task.marks]} for row in rows]
    if out is not None:
        write_report(out, rows, {"target": str(target), "data": data, **task.context})
        console.print(f"report in {out}")
    print_table(rows, str(target))
    return FAILED if any("error" in row for row in rows) else 0


def _task_of_model(
    target: Path,
    pipeline: TextToImage,
    data: str | None,
    num_images: int,
    samples: Path | None,
    how: dict[str, Any],
) -> _Task:
    """Pictures of the reference's captions; with `samples` they are kept there."""
    pipeline.prepare(how["sampling"])  # wrong settings raise here
    reference, marks = _reference_of_model(pipeline, data)
    prompts = evaluation_prompts(reference, num_images)
    if samples is None:
        images = pipeline.generate_batches(prompts, **how)
    else:
        sha256 = model_sha256(target)
        make_samples(samples, pipeline, prompts, model=sha256, console=console, **how)
        images = _saved(samples, num_images)
    weights = (target / "network" / WEIGHTS).read_bytes()
    context = {
        "kind": "model",
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "sampling": dataclasses.asdict(how["sampling"]),
        "seed": how["seed"],
        "reference": _about(reference),
    }
    total = max(num_images, MIN_REFERENCE)
    others = picture_batches("reference", reference, total)
    return _Task(generated_batches(images, prompts), others, context, marks)


def _task_of_samples(
    folder: Path, evaluators: dict[str, Evaluator], data: str | None, num_images: int
) -> _Task:
    samples, size = _samples(folder, num_images)
    context: dict[str, Any] = {"kind": "samples", "samples": _about(samples)}
    generated, others, marks = picture_batches("generated", samples), (), []
    needing = [name for name, e in evaluators.items() if "reference" in e.needs]
    if data is not None:
        reference, marks = _reference_folder(data, size)
        context["reference"] = _about(reference)
        others = picture_batches("reference", reference)
    elif needing:
        raise ConfigError(f"{needing[0]} compares with real pictures; name them with --data")
    if len(samples) < num_images:
        marks.append(f"{folder} holds {len(samples)} samples, {num_images} were asked for")
    return _Task(generated, others, context, marks)


def _reference_of_model(pipeline: TextToImage, data: str | None) -> tuple[Dataset, list[str]]:
    """The pictures to compare with, in the model's size, and what is to be said of them."""
    config, size = pipeline.config, pipeline.image_shape[-1]
    if data not in (None, "train", "validation"):
        return _reference_folder(data, size)
    if data != "train" and config.validation is None:
        raise ConfigError("the model's config has no validation set; name one with --data")
    section = {**config.dataset, **({} if data == "train" else config.validation or {})}
    console.print(f"reference, as the model's config asks for: {section}")
    if section.get("size", size) != size:
        raise ConfigError(f"the reference has pictures of size {section['size']}, the model {size}")
    reference = build_dataset(section) if data == "train" else build_validation(config)
    assert reference is not None
    if len(reference) > MAX_REFERENCE:
        raise ConfigError(f"the reference must have at most {MAX_REFERENCE} pictures")
    if (shape := tuple(reference[0]["image"].shape)) != pipeline.image_shape:
        raise ConfigError(
            f"the reference has pictures of shape {shape}, the model {pipeline.image_shape}"
        )
    return reference, []


def _reference_folder(path: str, size: int) -> tuple[Dataset, list[str]]:
    reference = build_dataset({"name": "folder", "path": path, "size": size})
    if isinstance(reference, Selective) and (skipped := reference.describe_skipped()):
        console.print(f"reference, skipped: {skipped}")
    others = sorted(own_sizes(Path(path)) - {(size, size)})
    listed = ", ".join(f"{width}x{height}" for width, height in others[:3])
    marks = [f"reference pictures were resized to {size}x{size}, some from {listed}"]
    return reference, marks if others else []


def _samples(folder: Path, limit: int) -> tuple[Dataset, int]:
    """The samples at their own size, and that size; none of them is left out."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is neither a model folder nor a folder of samples")
    if not (sizes := own_sizes(folder)):
        raise ConfigError(f"{folder} holds no pictures: not a folder of samples")
    if len(sizes) > 1 or any(width != height for width, height in sizes):
        listed = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)[:3])
        raise ConfigError(f"{folder} must hold square pictures of one size, got {listed}")
    size = next(iter(sizes))[0]
    samples = build_dataset({"name": "folder", "path": str(folder), "size": size, "limit": limit})
    if isinstance(samples, Selective) and (skipped := samples.describe_skipped()):
        raise ConfigError(f"{folder}: every sample counts, but some are unusable: {skipped}")
    return samples, size


def _saved(folder: Path, count: int) -> Iterator[UInt8[Tensor, "N 3 H W"]]:
    """The samples that `make_samples` has written, in batches."""
    for first in range(0, count, REFERENCE_BATCH):
        numbers = range(first, min(first + REFERENCE_BATCH, count))
        yield torch.stack([read_picture(sample_file(folder, i)) for i in numbers])


def _about(dataset: Dataset) -> dict[str, Any]:
    return {"n": len(dataset), "shape": list(dataset[0]["image"].shape)}
