"""The commands that look at data sets: data and pack."""

import argparse
from pathlib import Path

from tinydiffusion import config
from tinydiffusion.cli_arguments import Command, UsageError, count, parsed, size
from tinydiffusion.outputs import OutputFile, OutputFolder, check_folder

# ---- data ------------------------------------------------------------------------------------


def _data_arguments(parser: argparse.ArgumentParser) -> None:
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


def _data(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    known = parsed(parser, arguments)
    if not known.paths and known.config is None:
        raise UsageError("name one or more folders, or a run's --config FILE")
    settings = None if known.config is None else config.load(known.config)
    from tinydiffusion.commands.data import data

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


# ---- pack ------------------------------------------------------------------------------------


def _pack_arguments(parser: argparse.ArgumentParser) -> None:
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


def _pack(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    known = parsed(parser, arguments)
    named = 1 if known.check or known.config else 2
    if len(known.paths) != named:
        wanted = "one folder" if named == 1 else "a source and a folder to make"
        raise UsageError(f"name {wanted}, got {len(known.paths)} paths")
    if known.check:
        from tinydiffusion.commands._pack_check import check

        return check(known.paths[0])
    check_folder(Path(known.paths[-1]))
    if known.config is None and known.size is None:
        raise UsageError("give --size N, the shorter side of the packed pictures in pixels")
    section = {} if known.config is None else config.load(known.config).dataset
    from tinydiffusion.commands.pack import pack, section_of

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


COMMANDS: dict[str, Command] = {
    "data": ("Scan captioned pictures: what loads, what does not, why.", _data_arguments, _data),
    "pack": ("Make tar shards with a manifest of any data set.", _pack_arguments, _pack),
}
