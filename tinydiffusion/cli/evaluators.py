"""`tinydiffusion evaluators`: list the metrics."""

import argparse

from tinydiffusion.cli.arguments import parsed

HELP = "List the metrics and what they need."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `evaluators`."""
    parser.add_argument("name", nargs="?", help="One of them, with its options.")


def run(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    """Run `evaluators` and return its exit code."""
    known = parsed(parser, arguments)
    from tinydiffusion.cli.evaluator_table import evaluators

    return evaluators(known.name)
