"""`tinydiffusion sample`: prompts to PNG files."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import track
from torch import Tensor

from tinydiffusion.build import pick_device
from tinydiffusion.commands._pictures import earlier_samples, save_grid, save_samples
from tinydiffusion.config import SamplingConfig
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.training.precision import Precision


def sample(
    model: Path,
    prompts: Sequence[str],
    *,
    num_images: int,
    negative_prompt: str,
    seed: int,
    batch_size: int,
    out: Path,
    grid: Path | None,
    overrides: dict[str, Any],
    sampler_options: dict[str, Any],
    device: str,
    precision: Precision,
) -> int:
    """0 once `num_images` pictures of every prompt are written."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    pipeline = TextToImage.from_pretrained(model, device=pick_device(device), precision=precision)
    earlier = earlier_samples(out)
    settings = dataclasses.replace(pipeline.config.sampling, **overrides)
    every = [prompt for prompt in prompts for _ in range(num_images)]
    if cut := pipeline.num_truncated(prompts):
        limit = pipeline.text_encoder.max_length
        console.print(f"{cut} of {len(prompts)} prompts are longer than {limit} tokens and cut")
    batches = pipeline.generate_batches(
        every,
        seed=seed,
        batch_size=batch_size,
        negative_prompt=negative_prompt,
        sampling=settings,
        sampler_options=sampler_options,
    )
    images = torch.cat(list(_with_progress(batches, -(-len(every) // batch_size), console)))
    for file in earlier:
        file.unlink(missing_ok=True)
    save_samples(out, images, _rows(every, seed, negative_prompt, settings, sampler_options))
    console.print(f"{len(every)} pictures in {out}/")
    if grid is not None:
        columns = num_images if len(prompts) > 1 < num_images else min(8, len(every))
        save_grid(grid, images, every, columns, seed)
        console.print(f"grid in {grid}")
    return 0


def _rows(
    prompts: Sequence[str],
    seed: int,
    negative_prompt: str,
    settings: SamplingConfig,
    sampler_options: dict[str, Any],
) -> list[dict[str, Any]]:
    how = {
        "negative_prompt": negative_prompt,
        "sampler": settings.sampler,
        "sampler_options": sampler_options,
        "steps": settings.steps,
        "spacing": settings.spacing,
        "guidance_scale": settings.guidance_scale,
        "guidance_rescale": settings.guidance_rescale,
    }
    return [{"text": prompt, "seed": seed + i, **how} for i, prompt in enumerate(prompts)]


def _with_progress(
    batches: Iterator[UInt8[Tensor, "B C H W"]], total: int, console: Console
) -> Iterator[UInt8[Tensor, "B C H W"]]:
    yield from track(
        batches, "sampling", total=total, console=console, disable=not console.is_terminal
    )
