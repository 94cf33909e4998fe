"""`tinydiffusion pack`: make or check tar shards."""

import argparse
from pathlib import Path

from tinydiffusion import config
from tinydiffusion.cli.arguments import count, parsed, size
from tinydiffusion.runtime.errors import UsageError
from tinydiffusion.runtime.outputs import OutputFolder, check_folder

HELP = "Make tar shards with a manifest of any data set."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pack`."""
    add = parser.add_argument
    add(
        "paths", nargs="*", type=OutputFolder(tried=False), metavar="PATH",
        help="SRC DST: captioned pictures (a folder, tar shards here or at an address), and the "
        "folder to make. With --config DST alone, with --check the set to look at.",
    )  # fmt: skip
    add("--config", metavar="FILE", help="Pack the data set of this run's YAML file.")
    add(
        "--size", type=size, metavar="N|HxW",
        help="Shorter side in pixels, or height x width to cover; needed but for --config.",
    )  # fmt: skip
    add("--format", default="png", choices=["png", "jpg", "webp"], help="Default %(default)s.")
    add("--shard-size", type=count, default=1000, metavar="N", help="Pictures; default 1000.")
    add("--caption-column", metavar="NAME", help="Of the metadata; default text.")
    add("--workers", type=count, default=2, metavar="N", help="Default 2; alters no byte.")
    add("--check", action="store_true", help="Pack nothing: verify hashes, counts and headers.")


def run(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    """Run `pack` and return its exit code."""
    known = parsed(parser, arguments)
    named = 1 if known.check or known.config else 2
    if len(known.paths) != named:
        wanted = "one folder" if named == 1 else "a source and a folder to make"
        raise UsageError(f"name {wanted}, got {len(known.paths)} paths")
    if known.check:
        from tinydiffusion.shards.check import check

        return check(known.paths[0])
    check_folder(Path(known.paths[-1]))
    if known.config is None and known.size is None:
        raise UsageError("give --size N, the shorter side of the packed pictures in pixels")
    section = {} if known.config is None else config.load(known.config).dataset
    from tinydiffusion.packing.pack import pack, section_of

    own = {"size": known.size, "caption_column": known.caption_column}
    options = {name: value for name, value in own.items() if value is not None}
    return pack(
        {**(section or section_of(known.paths[0])), **options},
        Path(known.paths[-1]),
        picture_format=known.format,
        shard_size=known.shard_size,
        workers=known.workers,
        overwrite=known.overwrite,
    )
