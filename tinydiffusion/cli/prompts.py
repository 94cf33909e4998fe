"""`tinydiffusion prompts`: write prompts of drawn scenes to a file."""

import argparse

from tinydiffusion.cli.arguments import count, parsed
from tinydiffusion.runtime.outputs import OutputFile

HELP = "Write prompts of drawn scenes, by task."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `prompts`."""
    add = parser.add_argument
    add(
        "out", type=OutputFile("prompts.jsonl"), metavar="FILE.jsonl",
        help="Where to write them, in GenEval's format.",
    )  # fmt: skip
    add("--per-task", type=count, default=50, metavar="N", help="Of each of six; default 50.")
    add("--ladders", type=int, default=0, metavar="N", help="Of one to five conditions; default 0.")
    add("--seed", type=int, default=0, help="Default 0.")


def run(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    """Write the prompts of GenEval's six tasks, and of the ladders.

    Raises:
        ValueError: a number is out of its range.
    """
    known = parsed(parser, arguments)
    from rich.console import Console

    from tinydiffusion.scenes.geneval import write_prompts
    from tinydiffusion.scenes.tasks import difficulty_prompts, geneval_prompts

    out, ladders, seed = known.out, known.ladders, known.seed
    if ladders < 0 or seed < 0:
        raise ValueError(f"--ladders and --seed must be 0 or more, got {ladders} and {seed}")
    written = [*geneval_prompts(known.per_task, seed), *difficulty_prompts(ladders, seed)]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_prompts(out, written)
    tags = list(dict.fromkeys(prompt.tag for prompt in written))
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    console.print(f"{len(written)} prompts of {', '.join(tags)} in {out}")
    return 0
