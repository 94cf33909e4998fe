"""Listing of the files of a folder and its sub-folders; links are followed."""

import os
from collections import deque
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tinydiffusion.pictures.decode import is_picture_name
from tinydiffusion.pictures.scan import Skipped


class Walked(NamedTuple):
    """The files below a folder; names are relative to it, with forward slashes."""

    names: set[str]  # files, broken links, and folders with the suffix of a picture
    skipped: list[Skipped]  # folders that a link leads to a second time


def walk(root: Path) -> Walked:
    """List the files below a folder; a folder that several links lead to is read once.

    Names that begin with a dot are left out. Folders are read before links, so that a picture is
    named by its folder rather than by a link to it. Links may lead anywhere except to a folder that
    contains `root`.

    Raises:
        ValueError: a folder cannot be read.
    """
    walked = Walked(set(), [])
    read = {_real(root): "."}
    folders, links = deque([PurePosixPath()]), deque[PurePosixPath]()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()
        if folder.parts and (reason := _obstacle(root, folder, read)):
            walked.skipped.append(Skipped(str(folder), reason))
            continue
        for entry in _entries(root / folder):
            name = folder / entry.name
            is_folder = os.path.isdir(entry.path)  # noqa: PTH112 - Path raises where a link leads out of reach
            if is_folder:
                (links if entry.is_symlink() else folders).append(name)
            if not is_folder or is_picture_name(entry.name):
                walked.names.add(str(name))
    return walked


def _obstacle(root: Path, folder: PurePosixPath, read: dict[str, str]) -> str:
    """Return why a folder is not to be read; else add it to `read` and return empty text."""
    real = _real(root / folder)
    if real in read:
        return f"folder read already: as {read[real]}"
    if Path(_real(root)).is_relative_to(real):
        return f"linked folder around this one: {real}"
    read[real] = str(folder)
    return ""


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise ValueError(f"cannot read folder {folder}: {error.strerror}") from error
    return sorted(visible, key=lambda entry: entry.name)


def _real(folder: Path) -> str:
    return os.path.realpath(folder)
