"""`tinydiffusion export`: make a model folder of a checkpoint."""

import argparse
from pathlib import Path

from tinydiffusion.cli.arguments import parsed
from tinydiffusion.runtime.outputs import OutputFolder, check_folder

HELP = "Make a model of a run's checkpoint."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `export`."""
    parser.add_argument(
        "source", type=Path, metavar="RUN_OR_CHECKPOINT",
        help="A run, whose newest checkpoint is taken, such as runs/quickstart; or the folder of "
        "one checkpoint.",
    )  # fmt: skip
    parser.add_argument(
        "folder", type=OutputFolder(), metavar="FOLDER",
        help="The model folder to make; with --overwrite a model that is there is replaced.",
    )  # fmt: skip


def run(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    """Run `export` and return its exit code."""
    known = parsed(parser, arguments)
    check_folder(known.folder.resolve().parent)  # where the whole model takes its name
    from tinydiffusion.run.export import export

    return export(known.source, known.folder, overwrite=known.overwrite)
