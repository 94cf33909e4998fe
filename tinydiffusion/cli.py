"""The command line: reads arguments, answers `--help` without importing torch, reports mistakes."""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tinydiffusion import __version__, cli_data, cli_evaluation, config, registry
from tinydiffusion.cli_arguments import (
    Command,
    UsageError,
    add_overwrite,
    count,
    parsed,
    parsed_with_settings,
    sampling_arguments,
    sampling_overrides,
    shard,
    with_plugin_options,
)
from tinydiffusion.errors import DiskError, RunError
from tinydiffusion.outputs import OutputFile, OutputFolder, check_folder
from tinydiffusion.processes import StoppedTogether
from tinydiffusion.prompts_file import read_prompts_file
from tinydiffusion.streams import flush, lasting_streams

SHARED = ("train", "sample", "evaluate")
"""Commands whose work the processes of a launcher share."""
GRACE = 2.0
"""Seconds: a launcher ends all processes once one has ended, so the one that speaks ends first."""
USER_MISTAKE = 2
"""Exit code; `errors` has others. A run stopped by SIGINT ends with 130, by SIGTERM with 143."""


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> Any:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of a command line such as `["train", "--resume"]`."""
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
    """Run a command line, report what ends it, and return the exit code."""
    try:
        return _run(arguments)
    except (ValueError, RunError, OSError) as error:  # anything else is our mistake
        if "--debug" in arguments:
            raise
        if _is_said_elsewhere(error):
            time.sleep(GRACE)
        else:
            print(f"{_who()}error: {_in_one_line(error)}", file=sys.stderr)  # noqa: T201
        return _exit_code(error)
    except KeyboardInterrupt:
        return 130


def _exit_code(error: Exception) -> int:
    if isinstance(error, OSError):
        return DiskError.exit_code
    return error.exit_code if isinstance(error, RunError) else USER_MISTAKE


def _in_one_line(error: Exception) -> str:
    """Return what went wrong without the number that the operating system gives it."""
    if isinstance(error, OSError) and error.strerror:
        name = "" if error.filename is None else f"{error.filename}: "
        return f"{name}{error.strerror}"
    return str(error)


def _is_said_elsewhere(error: Exception) -> bool:
    """Whether another process of this job says it: what is wrong in a command line, all find."""
    if isinstance(error, (UsageError, config.ConfigError)):
        return os.environ.get("LOCAL_RANK", "0") != "0"
    return isinstance(error, StoppedTogether)


def _who() -> str:
    """Which process speaks, where there are several and it is not the main one."""
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
    return COMMANDS[name][2](commands[name], arguments[1:])


def parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Make the parser of the program, and that of each command by its name."""
    parser = _Parser(prog="tinydiffusion", description="Text-to-image diffusion from scratch.")
    parser.add_argument("--version", action="version", version=f"tinydiffusion {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    commands = {}
    for name, (help_line, add_arguments, _) in COMMANDS.items():
        command = commands[name] = subparsers.add_parser(
            name, help=help_line, description=help_line, epilog=EPILOGS[name](),
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        command.add_argument("--debug", action="store_true", help="Show tracebacks.")
        add_arguments(command)
        add_overwrite(command)
    return parser, commands


# ---- train -----------------------------------------------------------------------------------


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", default="configs/quickstart.yaml", metavar="FILE",
        help="YAML file; default %(default)s.",
    )  # fmt: skip
    parser.add_argument(
        "--run-dir", type=OutputFolder(), metavar="DIR",
        help="Folder of the run; default runs/<name of the config file>.",
    )  # fmt: skip
    parser.add_argument(
        "--resume", type=Path, metavar="CHECKPOINT",
        help="Go on from this checkpoint folder; without it a run that is there goes on from its "
        "newest undamaged one.",
    )  # fmt: skip
    parser.add_argument(
        "--allow-change", nargs="+", default=[], metavar="KEY",
        help="Go on although this setting is another now, such as training.learning_rate; `data` "
        "for the pictures.",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true",
        help="Print the settings and what the run will cost in time, memory and disk, from a few "
        "steps; train nothing.",
    )  # fmt: skip
    parser.add_argument(
        "--devices", type=count, nargs="+", default=[1, 2, 4, 8], metavar="N",
        help="With --dry-run: tell of N devices like this one too; default 1 2 4 8.",
    )  # fmt: skip
    parser.add_argument(
        "--json", type=OutputFile("plan.json", "tinydiffusion.plan/"), metavar="FILE",
        help="With --dry-run: write all of it as JSON too.",
    )  # fmt: skip


def _train(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    known, overrides = parsed_with_settings(parser, arguments)
    from tinydiffusion.commands._config_pictures import load_noting

    settings, notes = load_noting(known.config, overrides)
    run_dir = known.run_dir or Path("runs") / Path(known.config).stem
    check_folder(run_dir)
    from tinydiffusion.commands.train import train

    return train(
        settings,
        run_dir,
        resume=known.resume,
        allow_change=known.allow_change,
        dry_run=known.dry_run,
        devices=known.devices,
        json_file=known.json,
        overwrite=known.overwrite,
        notes=notes,
    )


# ---- export ----------------------------------------------------------------------------------


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=Path, metavar="RUN_OR_CHECKPOINT",
        help="A run, whose newest checkpoint is taken, such as runs/quickstart; or the folder of "
        "one checkpoint.",
    )  # fmt: skip
    parser.add_argument(
        "folder", type=OutputFolder(), metavar="FOLDER",
        help="The model folder to make; with --overwrite a model that is there is replaced.",
    )  # fmt: skip


def _export(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    known = parsed(parser, arguments)
    check_folder(known.folder.resolve().parent)  # where the whole model takes its name
    from tinydiffusion.commands.export import export

    return export(known.source, known.folder, overwrite=known.overwrite)


# ---- sample ----------------------------------------------------------------------------------


def _sample_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", type=Path, help="A model folder such as runs/quickstart/model, or a run.")
    add("prompt", nargs="*", help="One or more prompts.")
    add(
        "--prompts", type=Path, metavar="FILE",
        help="Text, a prompt a line, lines that begin with `#` left out; .json, .jsonl, .csv or "
        ".tsv with a `prompt`; `-` for standard input.",
    )  # fmt: skip
    add("--num-images", type=count, default=1, metavar="N", help="Pictures per prompt; default 1.")
    add("--negative-prompt", default="", metavar="TEXT", help="What guidance moves away from.")
    add("--seed", type=int, default=0, help="Picture i has seed + i; default 0.")
    add("--batch-size", type=count, default=32, metavar="N", help="Default 32; alters no picture.")
    add("--out", type=OutputFolder(), default="samples", metavar="DIR", help="Default samples/.")
    add(
        "--shard", type=shard, default=(1, 1), metavar="I/N",
        help="Make the I-th of N parts only, in a folder of its own in --out; see `merge-samples`.",
    )  # fmt: skip
    add(
        "--grid", type=OutputFile("grid.png"), metavar="FILE.png",
        help="Write all pictures as one PNG too.",
    )  # fmt: skip
    sampling_arguments(parser)


def _sample(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    known, options = with_plugin_options(parser, arguments)
    if wrong := [name for name in options if name != "sampler"]:
        raise UsageError(f"unknown arguments for {wrong[0]!r}; sampler options are --sampler.NAME")
    from tinydiffusion.commands.sample import sample

    return sample(
        known.model,
        _prompts(known),
        num_images=known.num_images,
        negative_prompt=known.negative_prompt,
        seed=known.seed,
        batch_size=known.batch_size,
        out=known.out,
        shard=known.shard,
        grid=known.grid,
        overrides=sampling_overrides(known),
        sampler_options=options.get("sampler", {}),
        device=known.device,
        precision=known.precision,
        trust_plugins=known.trust_plugins,
        overwrite=known.overwrite,
    )


def _prompts(known: argparse.Namespace) -> list[str]:
    prompts = list(known.prompt)
    if known.prompts is not None:
        prompts += read_prompts_file(known.prompts).texts
    if not prompts:
        raise UsageError("no prompt; give one or more after the model, or --prompts FILE")
    return prompts


def _merge_samples_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", nargs="+", type=OutputFolder(), metavar="DIR",
        help="What --out was for the shards; with several, the pictures go to the first.",
    )  # fmt: skip


def _merge_samples(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    known = parsed(parser, arguments)
    from tinydiffusion.commands.merge_samples import merge_samples

    folders = list(dict.fromkeys(known.folders))
    return merge_samples(folders, overwrite=known.overwrite)


# ---- sanity, plugins -------------------------------------------------------------------------


def _sanity_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", default="configs/quickstart.yaml", metavar="FILE",
        help="The run to check; default %(default)s.",
    )  # fmt: skip


def _sanity(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    known, overrides = parsed_with_settings(parser, arguments)
    settings = config.load(known.config, overrides)
    from tinydiffusion.commands.sanity import sanity

    return sanity(settings)


def _plugins_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", nargs="?", choices=list(registry.KINDS), help="One kind only.")


def _plugins(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    known = parsed(parser, arguments)
    for kind in [known.kind] if known.kind else registry.KINDS:
        for name in registry.names(kind):
            print(f"{kind:17} {name:15} {registry.origin(kind, name)}")  # noqa: T201
    return 0


def _train_epilog() -> str:
    return (
        "Any key of the config is a flag too, such as --training.batch_size 32, and so is any\n"
        "option of a plug-in, such as --network.channels '[64, 128]':\n\n" + config.help_text()
    )


COMMANDS: dict[str, Command] = {
    "train": ("Train a text-to-image model.", _train_arguments, _train),
    "export": ("Make a model of a run's checkpoint.", _export_arguments, _export),
    "sample": ("Make pictures from prompts.", _sample_arguments, _sample),
    "merge-samples": (
        "Put the shards of sampled pictures together.",
        _merge_samples_arguments,
        _merge_samples,
    ),
    **cli_evaluation.COMMANDS,
    **cli_data.COMMANDS,
    "sanity": ("Check in minutes that a setup can learn at all.", _sanity_arguments, _sanity),
    "plugins": ("List the plug-ins and where they come from.", _plugins_arguments, _plugins),
}
EPILOGS: dict[str, Callable[[], str]] = dict.fromkeys(COMMANDS, str) | {"train": _train_epilog}

if __name__ == "__main__":
    sys.exit(main())
