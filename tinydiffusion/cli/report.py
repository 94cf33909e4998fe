"""`tinydiffusion report`: make a page of a report."""

import argparse
from pathlib import Path

from tinydiffusion.cli.arguments import parsed
from tinydiffusion.runtime.outputs import OutputFile

HELP = "One self-contained HTML page of a report."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `report`."""
    add = parser.add_argument
    add("report", type=Path, metavar="REPORT.json", help="What evaluate --out or a run wrote.")
    add(
        "--run", type=Path, metavar="DIR",
        help="The run whose curves are shown; default: the one that the model lies in.",
    )  # fmt: skip
    add(
        "--out", type=OutputFile("report.html"), required=True, metavar="FILE.html",
        help="One file, no network.",
    )  # fmt: skip


def run(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    """Run `report` and return its exit code."""
    known = parsed(parser, arguments)
    from tinydiffusion.evaluation.report.report import report

    return report(known.report, run=known.run, out=known.out)
