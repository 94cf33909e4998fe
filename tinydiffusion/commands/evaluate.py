"""`tinydiffusion evaluate`: a model or a folder of samples in, a report out."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tinydiffusion.build import (
    build_dataset,
    build_evaluators,
    build_validation,
    pick_device,
)
from tinydiffusion.commands._evaluation import (
    evaluate_pipeline,
    picture_batches,
    print_table,
    run,
    write_report,
)
from tinydiffusion.config import ConfigError
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.protocols import Dataset
from tinydiffusion.training.precision import Precision


def evaluate(
    target: Path,
    metrics: Sequence[str],
    options: dict[str, dict[str, Any]],
    *,
    data: str | None,
    num_images: int,
    out: Path | None,
    seed: int,
    batch_size: int,
    overrides: dict[str, Any],
    device: str,
    precision: Precision,
) -> int:
    """0 once every metric is printed and, with `out`, written."""
    evaluators = build_evaluators(metrics, options)
    if (target / "model_index.json").is_file():
        pipeline = TextToImage.from_pretrained(
            target, device=pick_device(device), precision=precision
        )
        settings = dataclasses.replace(pipeline.config.sampling, **overrides)
        reference = _reference_of_model(pipeline, data)
        context: dict[str, Any] = {
            "kind": "model",
            "weights_sha256": _sha256(target / "network" / "diffusion_pytorch_model.safetensors"),
            "sampling": dataclasses.asdict(settings),
            "seed": seed,
        }
        rows = evaluate_pipeline(
            pipeline,
            evaluators,
            reference,
            num_images=num_images,
            seed=seed,
            sampling=settings,
            batch_size=batch_size,
        )
    else:
        if overrides:
            raise ConfigError(
                f"{target} holds samples, not a model: leave out {', '.join(overrides)}"
            )
        samples = _samples(target, num_images)
        reference = _reference_of_samples(evaluators, data, len(samples[0]["image"][0]))
        context = {"kind": "samples"}
        generated = picture_batches("generated", samples)
        rows = run(
            evaluators, generated, picture_batches("reference", reference) if reference else ()
        )
    if out is not None:
        write_report(out, rows, {"target": str(target), "data": data, **context})
        Console(stderr=True, markup=False, soft_wrap=True).print(f"report in {out}")
    print_table(rows, str(target))
    return 0


def _reference_of_model(pipeline: TextToImage, data: str | None) -> Dataset:
    config = pipeline.config
    if data == "train":
        return build_dataset(config.dataset)
    if data in (None, "validation"):
        validation = build_validation(config)
        if validation is None:
            raise ConfigError("the model's config has no validation set; name one with --data")
        return validation
    return build_dataset({"name": "folder", "path": data, "size": pipeline.image_shape[-1]})


def _samples(folder: Path, limit: int) -> Dataset:
    """The samples at their own size."""
    from PIL import Image

    if not folder.is_dir():
        raise ConfigError(f"{folder} is neither a model folder nor a folder of samples")
    if not (first := next(iter(sorted(folder.rglob("*.png"))), None)):
        raise ConfigError(f"{folder} holds no PNG files: not a folder of samples")
    with Image.open(first) as image:
        size = min(image.size)
    return build_dataset({"name": "folder", "path": str(folder), "size": size, "limit": limit})


def _reference_of_samples(evaluators: dict[str, Any], data: str | None, size: int) -> Any:
    needing = [name for name, e in evaluators.items() if "reference" in e.needs]
    if data is None:
        if needing:
            raise ConfigError(f"{needing[0]} compares with real pictures; name them with --data")
        return None
    return build_dataset({"name": "folder", "path": data, "size": size})


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
