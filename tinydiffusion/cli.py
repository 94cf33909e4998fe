"""The command line: reads arguments, answers `--help` without importing torch, reports mistakes."""

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tinydiffusion import config, registry
from tinydiffusion.errors import RunError

USER_MISTAKE = 2
"""Exit code; `errors` has others. A run stopped by SIGINT ends with 130, by SIGTERM with 143."""


MAX_COUNT = 1_000_000

SAMPLING_FLAGS = ("sampler", "steps", "spacing", "guidance_scale", "guidance_rescale")
"""Settings of `config.SamplingConfig` that are flags of sample and evaluate."""


class UsageError(ValueError):
    """Arguments that the command does not take."""


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> Any:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of a command line such as `["train", "--resume"]`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    warnings.showwarning = _show_warning
    try:
        return _run(arguments)
    except ValueError as error:  # what the user did; what is not caught here is our mistake
        if "--debug" in arguments:
            raise
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return USER_MISTAKE
    except RunError as error:
        if "--debug" in arguments:
            raise
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _show_warning(message: Warning | str, *_: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)  # noqa: T201


def _run(arguments: list[str]) -> int:
    parser = _Parser(prog="tinydiffusion", description="Text-to-image diffusion from scratch.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for name, (help_line, add_arguments, _) in COMMANDS.items():
        command = commands.add_parser(
            name, help=help_line, description=help_line, epilog=EPILOGS[name](),
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        command.add_argument("--debug", action="store_true", help="Show tracebacks.")
        add_arguments(command)
        if arguments[:1] == [name]:
            return COMMANDS[name][2](command, arguments[1:])
    parser.parse_args(arguments)
    parser.print_help()
    return 0


# ---- train -----------------------------------------------------------------------------------


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", default="configs/quickstart.yaml", metavar="FILE",
        help="YAML file; default %(default)s.",
    )  # fmt: skip
    parser.add_argument(
        "--run-dir", type=Path, metavar="DIR",
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
        help="Print the settings, parameters and expected time; train nothing.",
    )  # fmt: skip


def _train(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    known, overrides = parser.parse_known_args(arguments)
    settings = config.load(known.config, overrides)
    from tinydiffusion.commands.train import train

    run_dir = known.run_dir or Path("runs") / Path(known.config).stem
    return train(
        settings,
        run_dir,
        resume=known.resume,
        allow_change=known.allow_change,
        dry_run=known.dry_run,
    )


# ---- sample ----------------------------------------------------------------------------------


def _sample_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", type=Path, help="A model folder, such as runs/quickstart/model.")
    add("prompt", nargs="*", help="One or more prompts.")
    add("--prompts", type=Path, metavar="FILE", help="A text file with one prompt a line.")
    add("--num-images", type=_count, default=1, metavar="N", help="Pictures per prompt; default 1.")
    add("--negative-prompt", default="", metavar="TEXT", help="What guidance moves away from.")
    add("--seed", type=int, default=0, help="Picture i has seed + i; default 0.")
    add("--batch-size", type=_count, default=32, metavar="N", help="Default 32; alters no picture.")
    add("--out", type=Path, default=Path("samples"), metavar="DIR", help="Default samples/.")
    add("--grid", type=Path, metavar="FILE", help="Write all pictures as one PNG too.")
    _sampling_arguments(parser)


def _sampling_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    samplers = ", ".join(registry.names("sampler"))
    add("--sampler", metavar="NAME", help=f"One of {samplers}; default: the model's.")
    add("--steps", type=int, metavar="N", help="Sampling steps; default: the model's.")
    add("--spacing", metavar="NAME", help="trailing, leading, linspace or karras noise levels.")
    add("--guidance-scale", type=float, metavar="X", help="1 = off; default: the model's.")
    add("--guidance-rescale", type=float, metavar="X", help="In [0, 1]; default: the model's.")
    add("--device", default="auto", help="auto, cpu, cuda, mps.")
    add(
        "--precision", default="auto", choices=["auto", "float32", "bfloat16"],
        help="Of the arithmetic.",
    )  # fmt: skip
    add(
        "--trust-plugins", action="store_true",
        help="Import the code that the model folder names as MODULE:ATTRIBUTE.",
    )  # fmt: skip


def _sample(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    known, options = _with_plugin_options(parser, arguments)
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
        grid=known.grid,
        overrides=_sampling_overrides(known),
        sampler_options=options.get("sampler", {}),
        device=known.device,
        precision=known.precision,
        trust_plugins=known.trust_plugins,
    )


def _prompts(known: argparse.Namespace) -> list[str]:
    prompts = list(known.prompt)
    if known.prompts is not None:
        if not known.prompts.is_file():
            raise UsageError(f"--prompts {known.prompts}: there is no such file")
        try:
            lines = known.prompts.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UsageError(f"--prompts {known.prompts}: not a text in UTF-8") from error
        prompts += [line for line in lines if line.strip()]
    if not prompts:
        raise UsageError("no prompt; give one or more after the model, or --prompts FILE")
    return prompts


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    if number > MAX_COUNT:
        raise argparse.ArgumentTypeError(f"must be at most {MAX_COUNT}, got {number}")
    return number


def _positive(text: str) -> float:
    if not 0 < (number := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return number


def _sampling_overrides(known: argparse.Namespace) -> dict[str, Any]:
    values = {name: getattr(known, name) for name in SAMPLING_FLAGS}
    return {name: value for name, value in values.items() if value is not None}


# ---- evaluate --------------------------------------------------------------------------------


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    metrics = ", ".join(registry.names("evaluator"))
    add("target", type=Path, help="A model folder, or a folder of samples with metadata.jsonl.")
    add(
        "--metrics", nargs="+", required=True, metavar="NAME",
        help=f"Of {metrics}; options as --NAME.OPTION VALUE.",
    )  # fmt: skip
    add(
        "--data", metavar="PATH",
        help="Reference: a folder of captioned pictures, or `validation` or `train` of the model's "
        "config; default validation. A model's prompts are its captions.",
    )  # fmt: skip
    add("--num-images", type=_count, default=512, metavar="N", help="Pictures; default 512.")
    add("--out", type=Path, metavar="FILE.json", help="Write the report; default: print only.")
    add(
        "--samples", type=Path, metavar="DIR",
        help="Keep a model's pictures there; what is there already is not made again.",
    )  # fmt: skip
    add(
        "--hang-minutes", type=_positive, metavar="X",
        help="End when nothing has moved for so long; default: never.",
    )  # fmt: skip
    add("--seed", type=int, default=0, help="Picture i has seed + i; default 0.")
    add("--batch-size", type=_count, default=64, metavar="N", help="Default 64; alters no picture.")
    _sampling_arguments(parser)


def _evaluate(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    known, options = _with_plugin_options(parser, arguments)
    metrics = [name for part in known.metrics for name in part.split(",") if name]
    from tinydiffusion.commands.evaluate import evaluate

    return evaluate(
        known.target,
        metrics,
        options,
        data=known.data,
        num_images=known.num_images,
        out=known.out,
        samples=known.samples,
        seed=known.seed,
        batch_size=known.batch_size,
        overrides=_sampling_overrides(known),
        device=known.device,
        precision=known.precision,
        hang_minutes=known.hang_minutes,
        trust_plugins=known.trust_plugins,
    )


# ---- data ------------------------------------------------------------------------------------


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("paths", nargs="*", type=Path, metavar="PATH", help="Folders or tar shards, one per split.")
    add(
        "--config", metavar="FILE",
        help="Take paths, size, caption column and text encoder from this run's YAML file.",
    )  # fmt: skip
    add("--size", type=_count, metavar="N", help="Smallest side that is usable; default 32.")
    add("--caption-column", metavar="NAME", help="Of the metadata; default text.")
    add("--workers", type=_count, default=2, metavar="N", help="Default 2; alters no result.")
    add("--json", type=Path, metavar="FILE", help="Write every sample and every skipped file.")
    add("--sheet", type=Path, metavar="FILE.png", help="Write a contact sheet.")


def _data(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    known = parser.parse_args(arguments)
    if not known.paths and known.config is None:
        raise UsageError("name one or more folders, or a run's --config FILE")
    settings = None if known.config is None else config.load(known.config)
    from tinydiffusion.commands.data import data

    return data(
        known.paths,
        settings=settings,
        size=known.size,
        caption_column=known.caption_column,
        workers=known.workers,
        json_file=known.json,
        sheet=known.sheet,
    )


# ---- sanity, plugins -------------------------------------------------------------------------


def _sanity_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", default="configs/quickstart.yaml", metavar="FILE",
        help="The run to check; default %(default)s.",
    )  # fmt: skip


def _sanity(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    known, overrides = parser.parse_known_args(arguments)
    settings = config.load(known.config, overrides)
    from tinydiffusion.commands.sanity import sanity

    return sanity(settings)


def _plugins_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", nargs="?", choices=list(registry.KINDS), help="One kind only.")


def _plugins(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    known = parser.parse_args(arguments)
    for kind in [known.kind] if known.kind else registry.KINDS:
        others = registry.installed(kind)
        for name in registry.names(kind):
            origin = others[name].value if name in others else "built-in"
            print(f"{kind:13} {name:15} {origin}")  # noqa: T201
    return 0


def _with_plugin_options(
    parser: argparse.ArgumentParser, arguments: list[str]
) -> tuple[argparse.Namespace, dict[str, dict[str, Any]]]:
    """The parsed arguments, and `--fid.weights f.pth` as `{"fid": {"weights": "f.pth"}}`."""
    own: list[str] = []
    dotted: list[str] = []
    words = iter(arguments)
    for word in words:
        flag, equals, _ = word.partition("=")
        if flag.startswith("--") and "." in flag:
            dotted += [word] if equals else [word, *islice(words, 1)]
        else:
            own.append(word)
    options: dict[str, dict[str, Any]] = {}
    for key, value in config.read_flags(dotted).items():
        plugin, _, option = key.partition(".")
        options.setdefault(plugin, {})[option] = value
    return parser.parse_intermixed_args(own), options


def _train_epilog() -> str:
    return (
        "Any key of the config is a flag too, such as --training.batch_size 32, and so is any\n"
        "option of a plug-in, such as --network.channels '[64, 128]':\n\n" + config.help_text()
    )


Command = tuple[
    str,
    Callable[[argparse.ArgumentParser], None],
    Callable[[argparse.ArgumentParser, list[str]], int],
]
COMMANDS: dict[str, Command] = {
    "train": ("Train a text-to-image model.", _train_arguments, _train),
    "sample": ("Make pictures from prompts.", _sample_arguments, _sample),
    "evaluate": ("Measure a model or a folder of samples.", _evaluate_arguments, _evaluate),
    "data": ("Scan captioned pictures: what loads, what does not, why.", _data_arguments, _data),
    "sanity": ("Check in minutes that a setup can learn at all.", _sanity_arguments, _sanity),
    "plugins": ("List the plug-ins and where they come from.", _plugins_arguments, _plugins),
}
EPILOGS: dict[str, Callable[[], str]] = dict.fromkeys(COMMANDS, str) | {"train": _train_epilog}

if __name__ == "__main__":
    sys.exit(main())
