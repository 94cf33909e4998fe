"""`tinydiffusion statistics`: keep the statistics of a reference."""

import argparse
from pathlib import Path

from tinydiffusion.cli.arguments import count, size, with_plugin_options
from tinydiffusion.runtime.outputs import OutputFile

HELP = "Keep the statistics of a reference."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `statistics`."""
    add = parser.add_argument
    add("folder", type=Path, help="Any folder of pictures.")
    add(
        "--metrics", required=True, metavar="NAME",
        help="The metric to be compared by; options as --NAME.OPTION VALUE.",
    )  # fmt: skip
    add(
        "--resize", type=size, metavar="N|HxW",
        help="Make the pictures squares of N pixels, or H pixels high and W wide.",
    )  # fmt: skip
    add("--batch-size", type=count, default=64, metavar="N", help="Default 64; alters no number.")
    add(
        "--out", type=OutputFile("statistics.npz"), required=True, metavar="FILE.npz",
        help="Write the statistics.",
    )  # fmt: skip


def run(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    """Run `statistics` and return its exit code."""
    known, options = with_plugin_options(parser, arguments)
    from tinydiffusion.evaluation.statistics import statistics

    return statistics(
        known.folder,
        known.metrics,
        options,
        resize=known.resize,
        batch_size=known.batch_size,
        out=known.out,
    )
