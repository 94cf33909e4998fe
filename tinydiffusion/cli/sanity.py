"""`tinydiffusion sanity`: check that a setup can learn."""

import argparse

from tinydiffusion import config
from tinydiffusion.cli.arguments import parsed_with_settings

HELP = "Check in minutes that a setup can learn at all."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sanity`."""
    parser.add_argument(
        "--config", default="configs/quickstart.yaml", metavar="FILE",
        help="The run to check; default %(default)s.",
    )  # fmt: skip


def run(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    """Run `sanity` and return its exit code."""
    known, overrides = parsed_with_settings(parser, arguments)
    settings = config.load(known.config, overrides)
    from tinydiffusion.run.sanity import sanity

    return sanity(settings)
