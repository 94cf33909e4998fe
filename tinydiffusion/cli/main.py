"""The command line: reads arguments, answers `--help` without importing torch, reports mistakes."""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

from tinydiffusion import __version__, config
from tinydiffusion.cli import (
    compare,
    data,
    evaluate,
    evaluators,
    export,
    merge,
    merge_samples,
    pack,
    plugins,
    prompts,
    report,
    sample,
    sanity,
    statistics,
    train,
)
from tinydiffusion.cli.arguments import add_overwrite
from tinydiffusion.runtime.errors import DiskError, RunError, UsageError, exit_code_of
from tinydiffusion.runtime.processes import StoppedTogether
from tinydiffusion.runtime.streams import flush, lasting_streams

SHARED = ("train", "sample", "evaluate")
"""Commands whose work the processes of a launcher share."""
GRACE = 2.0
"""Seconds: a launcher ends all processes when one has ended, so the one that prints ends first."""


class Command(Protocol):
    """A module of this folder: a command's line in the help, its arguments, and its function."""

    @property
    def HELP(self) -> str: ...  # noqa: D102, N802 - a constant of a module

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Add the arguments of the command."""
        ...

    @staticmethod
    def run(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
        """Run the command and return its exit code. Heavy packages are imported here."""
        ...


COMMANDS: dict[str, Command] = {
    "train": train,
    "export": export,
    "sample": sample,
    "merge-samples": merge_samples,
    "evaluate": evaluate,
    "prompts": prompts,
    "merge": merge,
    "statistics": statistics,
    "compare": compare,
    "report": report,
    "evaluators": evaluators,
    "data": data,
    "pack": pack,
    "sanity": sanity,
    "plugins": plugins,
}


class _Parser(argparse.ArgumentParser):
    """A parser whose error messages are one line."""

    def error(self, message: str) -> Any:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line such as `["train", "--resume"]`, and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    warnings.showwarning = _show_warning
    with lasting_streams() as streams:
        code = _code_of(arguments)
        flush()
        if lost := [each.error for each in streams if each.error is not None]:
            reason = f"the console's output is lost: {lost[0].strerror}"
            print(f"{_who()}error: {reason}", file=sys.stderr)  # noqa: T201
            return code or DiskError.exit_code
        return code


def _code_of(arguments: list[str]) -> int:
    """Run a command line, report the error that ends it, and return the exit code."""
    try:
        return _run(arguments)
    except (ValueError, RunError, OSError) as error:  # anything else is our mistake
        if "--debug" in arguments:
            raise
        if _is_said_elsewhere(error):
            time.sleep(GRACE)
        else:
            print(f"{_who()}error: {_in_one_line(error)}", file=sys.stderr)  # noqa: T201
        return exit_code_of(error)
    except KeyboardInterrupt:
        return 130


def _in_one_line(error: Exception) -> str:
    """Return an error's message without the operating system's error number."""
    if isinstance(error, OSError) and error.strerror:
        name = "" if error.filename is None else f"{error.filename}: "
        return f"{name}{error.strerror}"
    return str(error)


def _is_said_elsewhere(error: Exception) -> bool:
    """Return whether another process of this job prints the same error.

    All processes find the mistakes in a command line; only the main one prints them.
    """
    if isinstance(error, (UsageError, config.ConfigError)):
        return os.environ.get("LOCAL_RANK", "0") != "0"
    return isinstance(error, StoppedTogether)


def _who() -> str:
    """Return a prefix that names this process; empty for the main process."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f"process {rank}: "


def _show_warning(message: Warning | str, *_: Any) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {message}", file=sys.stderr)  # noqa: T201


def _run(arguments: list[str]) -> int:
    parser, commands = parsers()
    name = arguments[0] if arguments else ""
    if name not in commands:
        parser.parse_args(arguments)
        parser.print_help()
        return 0
    if name not in SHARED and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError(f"{name} is the work of one process; start it without a launcher")
    return COMMANDS[name].run(commands[name], arguments[1:])


def parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Make the parser of the program, and that of each command by its name."""
    parser = _Parser(prog="tinydiffusion", description="Text-to-image diffusion from scratch.")
    parser.add_argument("--version", action="version", version=f"tinydiffusion {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    commands = {}
    for name, module in COMMANDS.items():
        command = commands[name] = subparsers.add_parser(
            name, help=module.HELP, description=module.HELP,
            epilog=train.epilog() if module is train else "",
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        command.add_argument("--debug", action="store_true", help="Show tracebacks.")
        module.add_arguments(command)
        add_overwrite(command)
    return parser, commands


if __name__ == "__main__":
    sys.exit(main())
