"""`tinydiffusion compare`: compare two reports."""

import argparse
from pathlib import Path

from tinydiffusion.cli.arguments import parsed
from tinydiffusion.runtime.outputs import OutputFile

HELP = "Which differences of two reports are not noise?"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `compare`."""
    add = parser.add_argument
    add("a", type=Path, metavar="A.json", help="A report of evaluate.")
    add("b", type=Path, metavar="B.json", help="Another, of the same metrics and prompts.")
    add("--seed", type=int, default=0, help="Of the bootstrap; default 0.")
    add(
        "--json", type=OutputFile("comparison.json", "tinydiffusion.eval-comparison/"),
        metavar="FILE", help="Write the comparison.",
    )  # fmt: skip


def run(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    """Run `compare` and return its exit code."""
    known = parsed(parser, arguments)
    from tinydiffusion.evaluation.compare import compare

    return compare(known.a, known.b, seed=known.seed, json_file=known.json)
