"""`tinydiffusion sample`: prompts to PNG files."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tinydiffusion.build import pick_device
from tinydiffusion.config import ConfigError
from tinydiffusion.layers.precision import Precision
from tinydiffusion.model_folder.finding import find_model
from tinydiffusion.pictures.grid import save_grid
from tinydiffusion.pictures.png import read_picture
from tinydiffusion.pipeline import TextToImage, check_prompts
from tinydiffusion.runtime.allocator import keep_freed_memory
from tinydiffusion.runtime.outputs import check_owner
from tinydiffusion.runtime.parts import WHOLE, Shard
from tinydiffusion.runtime.processes import joined
from tinydiffusion.sampling.folder import NAME, sample_file
from tinydiffusion.sampling.job import check_count, make_samples, model_sha256

ROW = 16  # most pictures of one prompt in a row of the grid


def sample(
    model: Path,
    prompts: Sequence[str],
    *,
    num_images: int,
    negative_prompt: str,
    seed: int,
    batch_size: int,
    out: Path,
    shard: Shard,
    grid: Path | None,
    overrides: dict[str, Any],
    sampler_options: dict[str, Any],
    device: str,
    precision: Precision,
    trust_plugins: bool,
    overwrite: bool = False,
) -> int:
    """Write `num_images` pictures of every prompt, or a shard of them, and return 0.

    The processes of a launcher share the work.
    """
    keep_freed_memory()
    with joined(device) as processes:
        console = Console(
            stderr=True, highlight=False, markup=False, soft_wrap=True, quiet=not processes.is_main
        )
        with processes.together(), processes.one_by_one():
            _check(prompts, num_images)
            _check_grid(grid, out, shard)
            if processes.is_main:
                check_owner(out, "sample", overwrite=overwrite)
            model = find_model(model)
            pipeline = TextToImage.from_pretrained(
                model, device=pick_device(device), precision=precision, trust_plugins=trust_plugins
            )
            if processes.is_main and (cut := pipeline.num_truncated(prompts)):
                limit = pipeline.text_encoder.max_length
                longer = f"{cut} of {len(prompts)} prompts are longer than {limit} tokens and cut"
                console.print(longer)
            digest, sampling = model_sha256(model), pipeline.config.sampling
        every = [prompt for prompt in prompts for _ in range(num_images)]
        make_samples(
            out,
            pipeline,
            every,
            model=digest,
            seed=seed,
            batch_size=batch_size,
            sampling=dataclasses.replace(sampling, **overrides),
            console=console,
            negative_prompt=negative_prompt,
            sampler_options=sampler_options,
            shard=shard,
            processes=processes,
            overwrite=overwrite,
        )
        if grid is not None:
            columns = num_images if len(prompts) > 1 and 1 < num_images <= ROW else None
            processes.on_main(lambda: _grid(grid, out, every, columns, seed))
            console.print(f"grid in {grid}")
    return 0


def _check(prompts: Sequence[str], num_images: int) -> None:
    check_prompts(prompts)
    check_count(len(prompts) * num_images)


def _check_grid(grid: Path | None, out: Path, shard: Shard) -> None:
    """Raise ConfigError for a grid of only a shard, or one that would replace a picture."""
    if grid is None:
        return
    if shard != WHOLE:
        raise ConfigError("--grid shows all pictures: a --shard has some of them only")
    if grid.resolve().parent == out.resolve() and NAME.fullmatch(grid.name):
        raise ConfigError(f"--grid {grid}: samples in --out have such names; name another file")


def _grid(file: Path, folder: Path, prompts: Sequence[str], columns: int | None, seed: int) -> None:
    images = [read_picture(sample_file(folder, i)) for i in range(len(prompts))]
    save_grid(file, torch.stack(images), prompts, seed=seed, columns=columns)
