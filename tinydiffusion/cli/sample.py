"""`tinydiffusion sample`: draw pictures from prompts."""

import argparse
from pathlib import Path

from tinydiffusion.cli.arguments import (
    count,
    sampling_arguments,
    sampling_overrides,
    shard,
    with_plugin_options,
)
from tinydiffusion.runtime.errors import UsageError
from tinydiffusion.runtime.outputs import OutputFile, OutputFolder
from tinydiffusion.sampling.prompts import read_prompts_file

HELP = "Make pictures from prompts."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sample`."""
    add = parser.add_argument
    add("model", type=Path, help="A model folder such as runs/quickstart/model, or a run.")
    add("prompt", nargs="*", help="One or more prompts.")
    add(
        "--prompts", type=Path, metavar="FILE",
        help="Text, a prompt a line, lines that begin with `#` left out; .json, .jsonl, .csv or "
        ".tsv with a `prompt`; `-` for standard input.",
    )  # fmt: skip
    add("--num-images", type=count, default=1, metavar="N", help="Pictures per prompt; default 1.")
    add("--negative-prompt", default="", metavar="TEXT", help="What guidance moves away from.")
    add("--seed", type=int, default=0, help="Picture i has seed + i; default 0.")
    add("--batch-size", type=count, default=32, metavar="N", help="Default 32; alters no picture.")
    add("--out", type=OutputFolder(), default="samples", metavar="DIR", help="Default samples/.")
    add(
        "--shard", type=shard, default=(1, 1), metavar="I/N",
        help="Make the I-th of N parts only, in a folder of its own in --out; see `merge-samples`.",
    )  # fmt: skip
    add(
        "--grid", type=OutputFile("grid.png"), metavar="FILE.png",
        help="Write all pictures as one PNG too.",
    )  # fmt: skip
    sampling_arguments(parser)


def run(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    """Run `sample` and return its exit code."""
    known, options = with_plugin_options(parser, arguments)
    if wrong := [name for name in options if name != "sampler"]:
        raise UsageError(f"unknown arguments for {wrong[0]!r}; sampler options are --sampler.NAME")
    from tinydiffusion.sampling.sample import sample

    return sample(
        known.model,
        _prompts(known),
        num_images=known.num_images,
        negative_prompt=known.negative_prompt,
        seed=known.seed,
        batch_size=known.batch_size,
        out=known.out,
        shard=known.shard,
        grid=known.grid,
        overrides=sampling_overrides(known),
        sampler_options=options.get("sampler", {}),
        device=known.device,
        precision=known.precision,
        trust_plugins=known.trust_plugins,
        overwrite=known.overwrite,
    )


def _prompts(known: argparse.Namespace) -> list[str]:
    prompts = list(known.prompt)
    if known.prompts is not None:
        prompts += read_prompts_file(known.prompts).texts
    if not prompts:
        raise UsageError("no prompt; give one or more after the model, or --prompts FILE")
    return prompts
