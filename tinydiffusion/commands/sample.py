"""`tinydiffusion sample`: prompts to PNG files."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tinydiffusion.build import pick_device
from tinydiffusion.commands._pictures import read_picture, sample_file, save_grid
from tinydiffusion.commands._sampling import check_count, make_samples, model_sha256
from tinydiffusion.pipeline import TextToImage, check_prompts
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
    trust_plugins: bool,
) -> int:
    """0 once `num_images` pictures of every prompt are written."""
    check_prompts(prompts)
    check_count(len(prompts) * num_images)
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    pipeline = TextToImage.from_pretrained(
        model, device=pick_device(device), precision=precision, trust_plugins=trust_plugins
    )
    if cut := pipeline.num_truncated(prompts):
        limit = pipeline.text_encoder.max_length
        console.print(f"{cut} of {len(prompts)} prompts are longer than {limit} tokens and cut")
    every = [prompt for prompt in prompts for _ in range(num_images)]
    make_samples(
        out,
        pipeline,
        every,
        model=model_sha256(model),
        seed=seed,
        batch_size=batch_size,
        sampling=dataclasses.replace(pipeline.config.sampling, **overrides),
        console=console,
        negative_prompt=negative_prompt,
        sampler_options=sampler_options,
    )
    if grid is not None:
        images = torch.stack([read_picture(sample_file(out, i)) for i in range(len(every))])
        columns = num_images if len(prompts) > 1 < num_images else min(8, len(every))
        save_grid(grid, images, every, columns, seed)
        console.print(f"grid in {grid}")
    return 0
