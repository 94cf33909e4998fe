"""`tinydiffusion merge`: join the parts of an evaluation into one report."""

import argparse
from pathlib import Path

from tinydiffusion.cli.arguments import parsed
from tinydiffusion.runtime.outputs import OutputFile

HELP = "One report of the shards of an evaluation."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `merge`."""
    add = parser.add_argument
    add("states", nargs="+", type=Path, metavar="FILE", help="What --state kept, of all shards.")
    add(
        "--out", type=OutputFile("report.json", "tinydiffusion.eval/"), required=True,
        metavar="FILE.json",
        help="Write the report.",
    )  # fmt: skip


def run(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    """Run `merge` and return its exit code."""
    known = parsed(parser, arguments)
    from tinydiffusion.evaluation.evaluate import merge

    return merge(known.states, known.out)
