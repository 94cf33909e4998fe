"""Checks of everything that a command will write, before it computes anything.

A path that cannot be written is refused at once. A folder has a hidden file with the command that
made it; a file is recognised by a stamp that all files of its kind contain. The command that made
them continues or replaces them, another command requires `--overwrite`, and a folder of files that
tinydiffusion did not make is never written to.
"""

import argparse
import contextlib
import errno
import json
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tinydiffusion.runtime.durable import NO_SPACE, make_folder, replace_file
from tinydiffusion.runtime.errors import DiskError
from tinydiffusion.runtime.locks import FolderLock

MARKER = ".tinydiffusion.json"
"""File with the name of the command that made a folder."""
STAMPS = {
    ".html": b'<meta name="generator" content="tinydiffusion',
    ".png": b"tEXtSoftware\0tinydiffusion",
    ".npz": "tinydiffusion.eval-statistics".encode("utf-32-le"),  # as numpy stores text
}
"""Suffix -> bytes that every such file of tinydiffusion contains."""
LIST_SUFFIX, LIST_TITLE = ".txt", "Texts that no font on this machine can draw in "
"""Suffix of the text file beside a grid, and the beginning of its text."""
MADE = {
    "train": "a training run",
    "sample": "samples",
    "pack": "packed shards",
}
"""Command -> contents of a folder that it made."""


class OutputFile:
    """The argparse type of a file to write.

    Args:
        name: File name where the argument is a folder; every name must have its suffix. Empty
            allows any name, and no folder.
        schema: For JSON files, the beginning of the schema that the command writes.
        continued: Whether the command continues from an existing file, and so decides itself
            which files it accepts.
    """

    def __init__(self, name: str = "", schema: str = "", *, continued: bool = False) -> None:
        self.name, self.continued = name, continued
        self.suffix = Path(name).suffix
        self.stamp = f'"schema": "{schema}'.encode() if schema else STAMPS.get(self.suffix)

    def __call__(self, text: str) -> Path:
        """Convert the argument to a path; called by argparse."""
        path = Path(text)
        if self.name and _is_folder(path):
            return path / self.name
        if path.suffix.lower() != self.suffix and self.suffix:
            raise argparse.ArgumentTypeError(
                f"{text}: the name must end in {self.suffix}, or be that of a folder"
            )
        return path

    def check(self, path: Path, *, overwrite: bool) -> None:
        """Raise ValueError where the file cannot be written, or another file would be lost."""
        if obstacle := file_obstacle(path):
            raise ValueError(obstacle)
        beside = path.with_name(f"{path.name}{LIST_SUFFIX}")
        if self.suffix == ".png" and beside.exists() and not (overwrite or is_list(beside)):
            raise ValueError(
                f"{beside} is there already, where a grid lists what it cannot show; move it away, "
                "or --overwrite"
            )
        if self.continued or not path.exists():
            return
        if not overwrite and (self.stamp is None or self.stamp not in path.read_bytes()):
            why = "" if self.stamp is None else " and not of the kind that this command writes"
            raise ValueError(f"{path} is there already{why}; name another file, or --overwrite")
        print(f"{path} will be replaced", file=sys.stderr)  # noqa: T201


class OutputFolder:
    """The argparse type of a folder to write in.

    Args:
        tried: Whether every such path is written in; else the command itself calls `check_folder`
            where it writes, and the text is not converted: it may be an address to read from.
    """

    def __init__(self, *, tried: bool = True) -> None:
        self.tried = tried

    def __call__(self, text: str) -> Path | str:
        """Convert the argument to a path, or leave it as text; called by argparse."""
        return Path(text) if self.tried else text


def check_outputs(parser: argparse.ArgumentParser, known: argparse.Namespace) -> None:
    """Check every path that a command will write, before its heavy imports.

    Args:
        parser: The command's; its arguments of type `OutputFile` and `OutputFolder` are checked.
        known: The parsed arguments; `overwrite` allows replacing any file.

    Raises:
        ValueError: A path cannot be written, or an existing file is of another kind.
    """
    files: set[Path] = set()
    for action in parser._actions:  # argparse offers no other list of its arguments
        value = getattr(known, action.dest, None)
        for path in value if isinstance(value, list) else [value]:
            if path is not None and isinstance(action.type, OutputFolder) and action.type.tried:
                check_folder(path)
            if path is not None and isinstance(action.type, OutputFile) and _is_main():
                action.type.check(path, overwrite=known.overwrite)
                if path.resolve() in files:
                    raise ValueError(f"{path} is to be written twice; name another file for one")
                files.add(path.resolve())


def check_folder(path: Path) -> None:
    """Raise ValueError where a folder cannot be made or written in."""
    if _is_main() and (obstacle := folder_obstacle(path)):
        raise ValueError(obstacle)


def is_list(file: Path) -> bool:
    """Return whether a file is a list of texts that was written beside a grid."""
    return file.is_file() and file.read_bytes().startswith(LIST_TITLE.encode())


@contextlib.contextmanager
def held(folder: Path, maker: str, *, overwrite: bool = False) -> Iterator[None]:
    """Lock a folder for one command inside the `with`, and mark the command as its maker.

    Args:
        folder: Made if it is not there.
        maker: The command, a key of `MADE`.
        overwrite: Take over a folder that another command made.

    Raises:
        ValueError: The folder is another command's, holds other files or is in use; it is then
            left unchanged.
        DiskError: The folder cannot be written.
    """
    check_owner(folder, maker, overwrite=overwrite)
    is_new = not folder.exists()
    try:
        with FolderLock(folder):
            mark(folder, maker, overwrite=overwrite)
            yield
    except BaseException:
        if is_new and [entry.name for entry in _entries(folder)] == [MARKER]:
            (folder / MARKER).unlink()  # nothing was written: leave nothing behind
            folder.rmdir()
        raise


def mark(folder: Path, maker: str, *, overwrite: bool = False) -> None:
    """Mark a command as the maker of a folder, see `held`; several processes may do so at once."""
    check_owner(folder, maker, overwrite=overwrite)
    if owner(folder) is None:  # with `overwrite`, a folder stays that of the command that made it
        make_folder(folder)
        replace_file(folder / MARKER, json.dumps({"made_by": maker}).encode())


def check_owner(folder: Path, maker: str, *, overwrite: bool = False) -> None:
    """Raise ValueError where a command must not write into a folder, see `held`."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    others = _strangers(
        folder
    )  # listed before the mark is read: a process marks a folder before it writes files
    made_by = owner(folder)
    if made_by == maker or (made_by is not None and overwrite):
        return
    if made_by is not None:
        raise ValueError(
            f"{folder} holds {MADE[made_by]} (of `tinydiffusion {made_by}`); name another folder, "
            "or --overwrite to write there all the same"
        )
    if others:
        raise ValueError(
            f"{folder} holds files that tinydiffusion did not make ({_listed(others)}); name a new "
            "or an empty folder"
        )


def _strangers(folder: Path) -> list[str]:
    """List the names in a folder, except hidden files and this process's own log."""
    entries = [e for e in _entries(folder) if not e.name.startswith(".")]
    return sorted(entry.name for entry in entries if not _is_log(entry))


def _is_log(file: Path) -> bool:
    """Return whether this process's standard output or error goes to a file, as in `> x/log`."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # closed, or a file that went away
            if os.path.samestat(file.stat(), os.fstat(descriptor)):
                return True
    return False


def owner(folder: Path) -> str | None:
    """Return the command that made a folder, by its mark or contents; None where neither shows."""
    try:
        made_by = json.loads((folder / MARKER).read_bytes())["made_by"]
    except (OSError, ValueError, KeyError, TypeError):  # a copy by `cp run/*` lacks hidden files
        return _made_by_contents(folder)
    return made_by if made_by in MADE else None


def _made_by_contents(folder: Path) -> str | None:
    """Return the command whose own files a folder holds: checkpoints of a run, parts of samples."""
    if any(folder.glob("checkpoints/*-pictures-*/manifest.json")):
        return "train" if (folder / "config.yaml").is_file() else None
    return "sample" if any(folder.glob("shard-*/.shard.json")) else None


def file_obstacle(path: Path) -> str | None:
    """Try to write in the folder of a future file; return why that fails, else None."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return folder_obstacle(path.parent)
    except OSError as error:
        return _reason(path, error)
    if stat.S_ISDIR(there.st_mode):
        return f"{path} is a folder; name a file"
    if not stat.S_ISREG(there.st_mode):
        return f"{path} is not a plain file"
    return folder_obstacle(path.resolve().parent)


def folder_obstacle(path: Path) -> str | None:
    """Try to write in a folder or its nearest parent; return why that fails, else None."""
    try:
        there = next(place for place in (path, *path.parents) if _is_there(place))
        with tempfile.TemporaryFile(
            dir=there
        ) as trial:  # without a name: nothing remains if the process is killed
            trial.write(b"0")
    except OSError as error:
        return _reason(path, error)
    return None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # such as too long a name: the later check of the path reports it
        return False


def _is_there(path: Path) -> bool:
    """Return whether a path exists; raise OSError where that cannot be determined."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def _reason(path: Path, error: OSError) -> str:
    """Return why a path cannot be written; raise DiskError where the disk is the cause."""
    shown = str(path) if len(str(path)) <= 120 else f"{str(path)[:80]}..."
    blocking = next((p for p in path.parents if p.exists() and not p.is_dir()), None)
    if isinstance(error, NotADirectoryError | FileExistsError):
        return f"{shown} cannot be written: {blocking or path} is a file, not a folder"
    if error.errno in {errno.EROFS, *NO_SPACE}:  # not a mistake of the user
        raise DiskError(f"{shown} cannot be written: {error.strerror}") from error
    return f"{shown} cannot be written: {error.strerror}"


def _is_main() -> bool:
    """Return whether this process writes; among several of a launcher, only the first does."""
    return os.environ.get("RANK", "0") == "0"


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}"
