"""`tinydiffusion evaluate`: measure a model or a folder of pictures."""

import argparse
from pathlib import Path
from typing import Any

from tinydiffusion import registry
from tinydiffusion.cli.arguments import (
    count,
    positive,
    sampling_arguments,
    sampling_overrides,
    shard,
    size,
    with_plugin_options,
)
from tinydiffusion.runtime.errors import UsageError
from tinydiffusion.runtime.outputs import OutputFile, OutputFolder
from tinydiffusion.sampling.prompts import read_prompts_file

HELP = "Measure a model or a folder of pictures."
JUDGE = "scene_accuracy"
"""The evaluator that reads the conditions of prompts from the prompts' file."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `evaluate`."""
    add = parser.add_argument
    metrics = ", ".join(registry.names("evaluator"))
    add("target", type=Path, help="A model folder, a run, or any folder of pictures.")
    add(
        "--metrics", nargs="+", required=True, metavar="NAME",
        help=f"Of {metrics}, or MODULE:ATTRIBUTE; options as --NAME.OPTION VALUE.",
    )  # fmt: skip
    add(
        "--data", metavar="PATH",
        help="Reference: a folder of pictures, statistics (.npz), or `validation` or `train` of "
        "the model's config; default validation. A model's prompts are its captions.",
    )  # fmt: skip
    add(
        "--train", metavar="PATH",
        help="Training pictures, for metrics that look for copies: a folder, or `train` of the "
        "model's config, which is the default.",
    )  # fmt: skip
    add(
        "--caption-column", metavar="NAME",
        help="Of the metadata of folders; default text, or where that is missing the column that "
        "the model was trained with.",
    )  # fmt: skip
    add(
        "--captions", choices=["auto", "folder"], default="auto",
        help="Where those of folders are: in files (auto, the default), or the names of "
        "sub-folders (folder).",
    )  # fmt: skip
    add(
        "--assume-extractor", metavar="NAME",
        help="What statistics that another program wrote were made with; rows are flagged.",
    )  # fmt: skip
    add(
        "--num-images", type=count, metavar="N",
        help="Pictures; default 512 of a model, all of a folder or of --prompts.",
    )  # fmt: skip
    add(
        "--prompts", type=Path, metavar="FILE",
        help="A model's prompts in place of captions, a file as for sample; GenEval's .jsonl tells "
        "scene_accuracy too what is asked for.",
    )  # fmt: skip
    add(
        "--samples-per-prompt", type=count, default=1, metavar="N",
        help="Pictures of each of these prompts; default 1.",
    )  # fmt: skip
    add(
        "--resize", type=size, metavar="N|HxW",
        help="Make a folder's pictures squares of N pixels, or H pixels high and W wide.",
    )  # fmt: skip
    add(
        "--guidance-scales", type=float, nargs="+", default=[], metavar="X",
        help="Measure a model at each of these too, for the curve of the report.",
    )  # fmt: skip
    _at_scale_arguments(parser)
    add(
        "--out", type=OutputFile("report.json", "tinydiffusion.eval/"), metavar="FILE.json",
        help="Write the report; default: print only.",
    )  # fmt: skip
    add(
        "--samples", type=OutputFolder(), metavar="DIR",
        help="Keep a model's pictures there; what is there already is not made again.",
    )  # fmt: skip
    add(
        "--hang-minutes", type=positive, metavar="X",
        help="End when nothing has moved for so long; default: never.",
    )  # fmt: skip
    add("--seed", type=int, default=0, help="Picture i has seed + i; default 0.")
    add("--batch-size", type=count, default=64, metavar="N", help="Default 64; alters no picture.")
    sampling_arguments(parser)


def run(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    """Run `evaluate` and return its exit code."""
    known, options = with_plugin_options(parser, arguments)
    metrics = _names(known.metrics)
    prompts, have_conditions = [], False
    if known.prompts is not None:
        texts, have_conditions = read_prompts_file(known.prompts)
        prompts = [text for text in texts for _ in range(known.samples_per_prompt)]
    if have_conditions and JUDGE in metrics:
        options[JUDGE] = _told(known) | options.get(JUDGE, {})
    from tinydiffusion.evaluation.evaluate import evaluate
    from tinydiffusion.evaluation.request import Request

    given = ("target", "data", "train", "caption_column", "captions", "assume_extractor",
             "num_images", "resize", "guidance_scales", "shard", "state", "save_every", "out",
             "samples", "seed", "batch_size", "device", "precision", "hang_minutes",
             "trust_plugins", "overwrite")  # fmt: skip
    return evaluate(
        Request(
            metrics=metrics,
            options=options,
            prompts=prompts,
            overrides=sampling_overrides(known),
            **{name: getattr(known, name) for name in given},
        )
    )


def _at_scale_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--shard", type=shard, default=(1, 1), metavar="I/N",
        help="Look at the I-th of N parts of the pictures only; see `merge`.",
    )  # fmt: skip
    add(
        "--state", type=OutputFile(continued=True), metavar="FILE",
        help="Keep there what has been measured; the same command goes on from it.",
    )  # fmt: skip
    add(
        "--save-every", type=count, default=5000, metavar="N",
        help="Pictures between two savings of the state; default %(default)s.",
    )  # fmt: skip


def _told(known: argparse.Namespace) -> dict[str, Any]:
    """Make the options of the judge: the file with the conditions of its prompts.

    Raises:
        UsageError: the judge cannot read the file, which it reads a second time, line by line.
    """
    if known.prompts.suffix.lower() != ".jsonl" or not known.prompts.is_file():
        raise UsageError(
            f"--prompts {known.prompts}: {JUDGE} reads what prompts ask for from a .jsonl file, "
            "an object a line; save them as one"
        )
    return {"prompts": str(known.prompts), "samples_per_prompt": known.samples_per_prompt}


def _names(parts: list[str]) -> list[str]:
    return [name for part in parts for name in part.split(",") if name]
