"""Look at everything that a command will write before it computes anything.

A path that cannot be written is refused at once. A folder says in a hidden file which command made
it; a file is known by a stamp that every one of its kind bears. The command that made them goes
on or replaces them, another one asks for `--overwrite`, and what is not ours is never touched.
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
"""File of a folder that names the command that made it."""
STAMPS = {
    ".html": b'<meta name="generator" content="tinydiffusion',
    ".png": b"tEXtSoftware\0tinydiffusion",
    ".npz": "tinydiffusion.eval-statistics".encode("utf-32-le"),  # as numpy stores text
}
"""Suffix -> bytes that stand in every such file of ours."""
LIST_SUFFIX, LIST_TITLE = ".txt", "Texts that no font on this machine can draw in "
"""Of the file beside a grid: what its name adds, and how its text begins."""
MADE = {
    "train": "a training run",
    "sample": "samples",
    "pack": "packed shards",
}
"""Command -> what a folder that it made holds."""


class OutputFile:
    """The type of an argument that names a file to write.

    Args:
        name: What the file is called where the argument is a folder; every name must end as it
            does. Empty allows any name, and no folder.
        schema: Of JSON files: how the schema that the command writes begins.
        continued: Whether the command goes on from the file that is there, and so decides for
            itself what it accepts.
    """

    def __init__(self, name: str = "", schema: str = "", *, continued: bool = False) -> None:
        self.name, self.continued = name, continued
        self.suffix = Path(name).suffix
        self.stamp = f'"schema": "{schema}'.encode() if schema else STAMPS.get(self.suffix)

    def __call__(self, text: str) -> Path:
        """Read the argument; argparse calls this."""
        path = Path(text)
        if self.name and _is_folder(path):
            return path / self.name
        if path.suffix.lower() != self.suffix and self.suffix:
            raise argparse.ArgumentTypeError(
                f"{text}: the name must end in {self.suffix}, or be that of a folder"
            )
        return path

    def check(self, path: Path, *, overwrite: bool) -> None:
        """Raise ValueError where the file cannot be written, or is not ours and would be lost."""
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
    """The type of an argument that names a folder to write in.

    Args:
        tried: Whether every such path is written in; else the command says which, see
            `check_folder`, and the text is left as it is: it may be an address to read from.
    """

    def __init__(self, *, tried: bool = True) -> None:
        self.tried = tried

    def __call__(self, text: str) -> Path | str:
        """Read the argument; argparse calls this."""
        return Path(text) if self.tried else text


def check_outputs(parser: argparse.ArgumentParser, known: argparse.Namespace) -> None:
    """Try every path that a command will write, before it imports what it computes with.

    Args:
        parser: The command's; its arguments of type `OutputFile` and `OutputFolder` are tried.
        known: The parsed arguments; `overwrite` allows to replace any file.

    Raises:
        ValueError: A path cannot be written, or a file there is not of the kind to be written.
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
    """Return whether a file is a list that was written beside a grid."""
    return file.is_file() and file.read_bytes().startswith(LIST_TITLE.encode())


@contextlib.contextmanager
def held(folder: Path, maker: str, *, overwrite: bool = False) -> Iterator[None]:
    """Hold a folder for one command while the `with` block lasts, and mark it as its work.

    Args:
        folder: Made if it is not there.
        maker: The command, a key of `MADE`.
        overwrite: Take over a folder that another command made.

    Raises:
        ValueError: The folder is another command's, not ours, or in use; nothing is changed then.
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
            (folder / MARKER).unlink()  # nothing came of it: leave nothing behind
            folder.rmdir()
        raise


def mark(folder: Path, maker: str, *, overwrite: bool = False) -> None:
    """Mark a folder as a command's work, see `held`; several processes may do so at once."""
    check_owner(folder, maker, overwrite=overwrite)
    if owner(folder) is None:  # with `overwrite`, a folder stays that of the command that made it
        make_folder(folder)
        replace_file(folder / MARKER, json.dumps({"made_by": maker}).encode())


def check_owner(folder: Path, maker: str, *, overwrite: bool = False) -> None:
    """Raise ValueError where a command must not write into a folder, see `held`."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    others = _strangers(folder)  # before the mark is read: a process that makes them marks first
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
    """List what lies in a folder, but hidden files and what this process's own words go to."""
    entries = [e for e in _entries(folder) if not e.name.startswith(".")]
    return sorted(entry.name for entry in entries if not _is_log(entry))


def _is_log(file: Path) -> bool:
    """Return whether a file is standard output or error, as in `train > runs/x/log`."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # closed, or a file that went away
            if os.path.samestat(file.stat(), os.fstat(descriptor)):
                return True
    return False


def owner(folder: Path) -> str | None:
    """Read which command made a folder; None where neither its mark nor its contents tell."""
    try:
        made_by = json.loads((folder / MARKER).read_bytes())["made_by"]
    except (OSError, ValueError, KeyError, TypeError):  # a copy by `cp run/*` lacks hidden files
        return _made_by_contents(folder)
    return made_by if made_by in MADE else None


def _made_by_contents(folder: Path) -> str | None:
    """Recognise what no other program writes: checkpoints of a run, parts of samples."""
    if any(folder.glob("checkpoints/*-pictures-*/manifest.json")):
        return "train" if (folder / "config.yaml").is_file() else None
    return "sample" if any(folder.glob("shard-*/.shard.json")) else None


def file_obstacle(path: Path) -> str | None:
    """Try to write beside where a file will be, and return why that cannot be done, if so."""
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
    """Try to write in a folder, or where it would be made, and return why it failed, if so."""
    try:
        there = next(place for place in (path, *path.parents) if _is_there(place))
        with tempfile.TemporaryFile(dir=there) as trial:  # without a name: no kill can leave it
            trial.write(b"0")
    except OSError as error:
        return _reason(path, error)
    return None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # such as too long a name: what tries the path says so
        return False


def _is_there(path: Path) -> bool:
    """Return whether a path leads somewhere; raise OSError where that cannot be told."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def _reason(path: Path, error: OSError) -> str:
    """Say why a path cannot be written; raise DiskError where the disk is why."""
    shown = str(path) if len(str(path)) <= 120 else f"{str(path)[:80]}..."
    blocking = next((p for p in path.parents if p.exists() and not p.is_dir()), None)
    if isinstance(error, NotADirectoryError | FileExistsError):
        return f"{shown} cannot be written: {blocking or path} is a file, not a folder"
    if error.errno in {errno.EROFS, *NO_SPACE}:  # nobody's mistake
        raise DiskError(f"{shown} cannot be written: {error.strerror}") from error
    return f"{shown} cannot be written: {error.strerror}"


def _is_main() -> bool:
    """Return whether this process writes: of those of a launcher, the first one does."""
    return os.environ.get("RANK", "0") == "0"


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}"
