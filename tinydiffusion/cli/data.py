"""`tinydiffusion data`: scan captioned pictures."""

import argparse
from pathlib import Path

from tinydiffusion import config
from tinydiffusion.cli.arguments import count, parsed, size
from tinydiffusion.runtime.errors import UsageError
from tinydiffusion.runtime.outputs import OutputFile

HELP = "Scan captioned pictures: what loads, what does not, why."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `data`."""
    add = parser.add_argument
    add("paths", nargs="*", type=Path, metavar="PATH", help="Folders or tar shards, one per split.")
    add(
        "--config", metavar="FILE",
        help="Take paths, size, caption column and text encoder from this run's YAML file.",
    )  # fmt: skip
    add(
        "--size", type=size, metavar="N|HxW",
        help="Side of the examples, or height x width; smaller pictures are skipped; default 32.",
    )  # fmt: skip
    add("--caption-column", metavar="NAME", help="Of the metadata; default text.")
    add(
        "--captions", choices=["auto", "folder"],
        help="Where they are: in files (auto, the default), or the names of sub-folders (folder).",
    )  # fmt: skip
    add("--workers", type=count, default=2, metavar="N", help="Default 2; alters no result.")
    add(
        "--json", type=OutputFile("scan.json", "tinydiffusion.data/"), metavar="FILE",
        help="Write every sample and every skipped file.",
    )  # fmt: skip
    add("--sheet", type=OutputFile("sheet.png"), metavar="FILE.png", help="Write a contact sheet.")


def run(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    """Run `data` and return its exit code."""
    known = parsed(parser, arguments)
    if not known.paths and known.config is None:
        raise UsageError("name one or more folders, or a run's --config FILE")
    settings = None if known.config is None else config.load(known.config)
    from tinydiffusion.cli.data_scan import data

    return data(
        known.paths,
        settings=settings,
        size=known.size,
        caption_column=known.caption_column,
        captions=known.captions,
        workers=known.workers,
        json_file=known.json,
        sheet=known.sheet,
    )
