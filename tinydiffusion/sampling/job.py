"""Samples of a model in a folder; those that exist already are not generated again."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from rich.console import Console
from rich.progress import track
from torch import Tensor

from tinydiffusion.config import SamplingConfig, to_dict
from tinydiffusion.model_folder.layout import INDEX
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.runtime.durable import replace_file
from tinydiffusion.runtime.outputs import held, mark
from tinydiffusion.runtime.parts import MANIFEST, WHOLE, Shard, check_same, share
from tinydiffusion.runtime.processes import ALONE, Processes
from tinydiffusion.sampling.folder import (
    MAX_SAMPLES,
    Rows,
    describe_replaced,
    kept_samples,
    naming_disk_errors,
    save_samples,
)
from tinydiffusion.sampling.prompts import prompts_sha256

SCHEMA = "tinydiffusion.sample-shard/1"

Numbered = tuple[int, UInt8[Tensor, "C H W"]]


def model_sha256(folder: Path) -> str:
    """Compute the sha256 of `model_index.json`, which holds those of the weights."""
    return hashlib.sha256((folder / INDEX).read_bytes()).hexdigest()


def shard_folder(folder: Path, shard: Shard) -> Path:
    """Return the folder of a shard of samples; the whole set lies in `folder` itself."""
    if shard == WHOLE:
        return folder
    number, count = shard
    return folder / f"shard-{number:0{len(str(count))}}-of-{count}"


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
    shard: Shard = WHOLE,
    processes: Processes = ALONE,
    overwrite: bool = False,
) -> None:
    """Write a picture of every prompt, picture i with seed + i, and how each was made.

    The same call after an interruption continues, with any number of processes: it keeps pictures
    that are whole and were made from the same model, prompt, seed and settings. Collective.

    Args:
        folder: See `save_samples`; a shard has its own folder inside.
        pipeline: The model.
        prompts: One per picture, those of all shards.
        model: See `model_sha256`.
        seed: Seed of picture 0.
        batch_size: Pictures made together by a process.
        sampling: Sampler, steps, guidance.
        console: Console for the number of kept pictures and for warnings.
        negative_prompt: What guidance moves away from.
        sampler_options: The sampler's own options.
        shard: Which part of the pictures to make.
        processes: The processes that share the pictures.
        overwrite: See `outputs.held`.

    Raises:
        ValueError: a setting is out of its range, or the folder holds something else or is in use;
            raised before anything is computed or deleted.
    """
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "negative_prompt": negative_prompt,
        "sampling": sampling,
        "sampler_options": sampler_options or {},
    }
    with processes.together():
        check_count(len(prompts))
        pipeline.generate_batches(prompts, seed=seed, **options)  # wrong settings raise here
        how = {"model_sha256": model, **_how(pipeline, **options)}
    whole = {"pictures": len(prompts), "prompts_sha256": prompts_sha256(prompts), "seed": seed}
    check_same({**whole, "how": how}, processes)
    numbers = share(range(len(prompts)), shard)
    rows = {i: {"text": prompts[i], "seed": seed + i, **how} for i in numbers}
    flat: list[int] = []
    with ExitStack() as stack:
        processes.on_main(lambda: _hold(folder, shard, stack, overwrite=overwrite))
        folder = shard_folder(folder, shard)
        kept, replaced = processes.on_main(lambda: _look_at(folder, rows))
        if kept:
            console.print(f"{len(kept)} of {len(rows)} pictures are there already")
        if replaced:
            console.print(replaced)
        mine = share([i for i in numbers if i not in kept], (processes.rank + 1, processes.count))
        images = _noting_flat(_made(pipeline, prompts, seed, mine, console, options), flat)
        save_samples(folder, images, rows, kept, processes)
        if shard != WHOLE:
            about = {"schema": SCHEMA, "shard": shard, "whole": {**whole, "how": how}}
            processes.on_main(lambda: _write_manifest(folder, about))
    if number := sum(map(len, processes.gather(flat))):
        console.print(f"warning: {number} pictures are of one colour; has the model been trained?")
    console.print(f"{len(rows)} pictures in {folder}/")


def _hold(folder: Path, shard: Shard, stack: ExitStack, *, overwrite: bool) -> None:
    """Lock the folder of the samples, or of one shard: shards may be made at the same time."""
    with naming_disk_errors(folder):
        if shard != WHOLE:
            mark(folder, "sample", overwrite=overwrite)
        stack.enter_context(held(shard_folder(folder, shard), "sample", overwrite=overwrite))


def _look_at(folder: Path, rows: Rows) -> tuple[dict[int, str], str]:
    """Return what `kept_samples` finds, and what `describe_replaced` returns for the rest."""
    kept = kept_samples(folder, rows)
    return kept, describe_replaced(folder, rows, kept)


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
    """Collect the other settings that the pixels depend on; the batch size is not among them."""
    del batch_size
    return {
        "negative_prompt": negative_prompt if pipeline.guidance(sampling).is_on else "",
        "sampler": sampling.sampler,
        "sampler_options": sampler_options,
        "steps": sampling.steps,
        "spacing": sampling.spacing,
        "guidance_scale": sampling.guidance_scale,
        "guidance_rescale": sampling.guidance_rescale,
        "guidance_interval": to_dict(sampling)["guidance_interval"],
        "precision": pipeline.precision,
        "device": pipeline.device.type,
    }


def _made(
    pipeline: TextToImage,
    prompts: Sequence[str],
    seed: int,
    wanted: Sequence[int],
    console: Console,
    options: dict[str, Any],
) -> Iterator[Numbered]:
    """Yield the wanted pictures with their numbers, in the batches of an uninterrupted run.

    On a GPU a picture is the same to the bit in the same batch only, so that partly wanted
    batches are generated whole. On a CPU it is the same in any batch, see `FixedRows`.
    """
    size = options["batch_size"]
    batches = [list(numbers) for _, numbers in groupby(wanted, lambda i: i // size)]
    silent = console.quiet or not console.is_terminal
    for numbers in track(batches, "sampling", console=console, disable=silent):
        first, stop = numbers[0], numbers[-1] + 1
        if pipeline.device.type != "cpu":
            first -= first % size
            stop = min(first + size, len(prompts))
        images = pipeline.generate(prompts[first:stop], seed=seed + first, **options)
        yield from ((i, images[i - first]) for i in numbers)


def _noting_flat(images: Iterable[Numbered], flat: list[int]) -> Iterator[Numbered]:
    """Yield the same pictures, and append the numbers of those of one colour to `flat`."""
    for i, image in images:
        if (image == image[:, :1, :1]).all():
            flat.append(i)
        yield i, image


def _write_manifest(folder: Path, about: dict[str, Any]) -> None:
    with naming_disk_errors(folder):
        replace_file(folder / MANIFEST, json.dumps(about).encode())
