"""Samples of a model in a folder, made as they come; what is there already is not made again."""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from rich.console import Console
from rich.progress import track
from torch import Tensor

from tinydiffusion.commands._pictures import MAX_SAMPLES, kept_samples, save_samples
from tinydiffusion.config import SamplingConfig
from tinydiffusion.model_folder.layout import INDEX
from tinydiffusion.pipeline import TextToImage


def model_sha256(folder: Path) -> str:
    """Sha256 of `model_index.json`, which holds those of the weights."""
    return hashlib.sha256((folder / INDEX).read_bytes()).hexdigest()


def make_samples(
    folder: Path,
    pipeline: TextToImage,
    prompts: Sequence[str],
    *,
    model: str,
    seed: int,
    batch_size: int,
    sampling: SamplingConfig,
    console: Console,
    negative_prompt: str = "",
    sampler_options: dict[str, Any] | None = None,
) -> None:
    """Write a picture of every prompt, picture i with seed + i, and how each was made.

    The same call after an interruption goes on: pictures are kept that are whole and were made
    from the same model, prompt, seed and settings.

    Args:
        folder: See `save_samples`.
        pipeline: The model.
        prompts: One per picture.
        model: See `model_sha256`.
        seed: Of picture 0.
        batch_size: Pictures made together.
        sampling: Sampler, steps, guidance.
        console: What was kept, and what looks wrong, is said there.
        negative_prompt: What guidance moves away from.
        sampler_options: The sampler's own options.

    Raises:
        ValueError: a setting is out of its range, or the folder holds something else; before
            anything is computed or deleted.
    """
    check_count(len(prompts))
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "negative_prompt": negative_prompt,
        "sampling": sampling,
        "sampler_options": sampler_options or {},
    }
    pipeline.generate_batches(prompts, seed=seed, **options)  # wrong settings raise here
    how = {"model_sha256": model, **_how(pipeline, **options)}
    rows = [{"text": prompt, "seed": seed + i, **how} for i, prompt in enumerate(prompts)]
    kept = kept_samples(folder, rows)
    if kept:
        console.print(f"{len(kept)} of {len(prompts)} pictures are there already")
    images = _missing(pipeline, prompts, seed, kept, console, options)
    save_samples(folder, _watched(images, console), rows, kept)
    console.print(f"{len(prompts)} pictures in {folder}/")


def check_count(count: int) -> None:
    """Raise ValueError for more pictures than a folder of samples takes."""
    if count > MAX_SAMPLES:
        raise ValueError(
            f"a folder takes {MAX_SAMPLES} samples, got {count}; make the rest in another folder "
            "with another --seed"
        )


def _how(
    pipeline: TextToImage,
    *,
    batch_size: int,
    negative_prompt: str,
    sampling: SamplingConfig,
    sampler_options: dict[str, Any],
) -> dict[str, Any]:
    """What else decides the pixels; the batch size does not."""
    del batch_size
    return {
        "negative_prompt": negative_prompt,
        "sampler": sampling.sampler,
        "sampler_options": sampler_options,
        "steps": sampling.steps,
        "spacing": sampling.spacing,
        "guidance_scale": sampling.guidance_scale,
        "guidance_rescale": sampling.guidance_rescale,
        "precision": "bfloat16" if pipeline.bfloat16 else "float32",
        "device": pipeline.device.type,
    }


def _missing(
    pipeline: TextToImage,
    prompts: Sequence[str],
    seed: int,
    kept: Collection[int],
    console: Console,
    options: dict[str, Any],
) -> Iterator[UInt8[Tensor, "C H W"]]:
    """The pictures that are not kept, in the batches of an unbroken run."""
    size = options["batch_size"]
    firsts = range(0, len(prompts), size)
    for first in track(firsts, "sampling", console=console, disable=not console.is_terminal):
        numbers = range(first, min(first + size, len(prompts)))
        if missing := [i for i in numbers if i not in kept]:
            images = pipeline.generate(prompts[first : numbers.stop], seed=seed + first, **options)
            yield from (images[i - first] for i in missing)


def _watched(
    images: Iterator[UInt8[Tensor, "C H W"]], console: Console
) -> Iterator[UInt8[Tensor, "C H W"]]:
    """The same pictures, those of one colour being counted."""
    flat = 0
    for image in images:
        flat += bool((image == image[:, :1, :1]).all())
        yield image
    if flat:
        console.print(f"warning: {flat} pictures are of one colour; has the model been trained?")
