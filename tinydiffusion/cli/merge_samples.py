"""`tinydiffusion merge-samples`: join the parts of sampled pictures."""

import argparse

from tinydiffusion.cli.arguments import parsed
from tinydiffusion.runtime.outputs import OutputFolder

HELP = "Put the shards of sampled pictures together."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `merge-samples`."""
    parser.add_argument(
        "folders", nargs="+", type=OutputFolder(), metavar="DIR",
        help="What --out was for the shards; with several, the pictures go to the first.",
    )  # fmt: skip


def run(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    """Run `merge-samples` and return its exit code."""
    known = parsed(parser, arguments)
    from tinydiffusion.sampling.merge import merge_samples

    folders = list(dict.fromkeys(known.folders))
    return merge_samples(folders, overwrite=known.overwrite)
