"""Arguments that several commands have in common."""

import argparse
import re
import warnings
from itertools import islice
from typing import Any

from tinydiffusion import config, registry
from tinydiffusion.runtime.errors import SettingWarning, UsageError
from tinydiffusion.runtime.outputs import OutputFile, OutputFolder, check_outputs
from tinydiffusion.without_effect import FLAGS, Flags, idle

MAX_COUNT = 1_000_000

SAMPLING_FLAGS = (
    "sampler", "steps", "spacing", "guidance_scale", "guidance_rescale", "guidance_interval",
)  # fmt: skip
"""Settings of `config.SamplingConfig` that are flags of sample and evaluate."""


def sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `SAMPLING_FLAGS`, device, precision and trust."""
    add = parser.add_argument
    samplers = ", ".join(registry.names("sampler"))
    add("--sampler", metavar="NAME", help=f"One of {samplers}; default: the model's.")
    add("--steps", type=int, metavar="N", help="Sampling steps; default: the model's.")
    add("--spacing", metavar="NAME", help="trailing, leading, linspace or karras noise levels.")
    add("--guidance-scale", type=float, metavar="X", help="1 = off; default: the model's.")
    add("--guidance-rescale", type=float, metavar="X", help="In [0, 1]; default: the model's.")
    add(
        "--guidance-interval", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="Noise levels (noise / signal) that are guided; default: the model's.",
    )  # fmt: skip
    add("--device", default="auto", help="auto, cpu, cuda, mps.")
    add(
        "--precision", default="auto", choices=["auto", "float32", "bfloat16", "int8"],
        help="Of the arithmetic; int8: of wide convolutions.",
    )  # fmt: skip
    add(
        "--trust-plugins", action="store_true",
        help="Import the code that the model folder names as MODULE:ATTRIBUTE.",
    )  # fmt: skip


def check_flags(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Warn of flags that have no effect with the other flags.

    Raises:
        UsageError: such a flag is certainly a mistake.
    """
    command = parser.prog.rpartition(" ")[2]
    rules = idle(FLAGS.get(command, ()), Flags(given, parser))
    if mistakes := [rule for rule in rules if rule.is_mistake]:
        raise UsageError(str(mistakes[0]))
    for rule in rules:
        warnings.warn(str(rule), SettingWarning, stacklevel=2)


def sampling_overrides(known: argparse.Namespace) -> dict[str, Any]:
    """Collect those of `SAMPLING_FLAGS` that were given."""
    values = {name: getattr(known, name) for name in SAMPLING_FLAGS}
    given = {name: value for name, value in values.items() if value is not None}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}


def count(text: str) -> int:
    """Parse a whole number in [1, MAX_COUNT]."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    if number > MAX_COUNT:
        raise argparse.ArgumentTypeError(f"must be at most {MAX_COUNT}, got {number}")
    return number


def size(text: str) -> int | list[int]:
    """Parse `32` as 32, the side of a square, and `32x48` as [32, 48], height and width."""
    height, cross, width = text.partition("x")
    return [count(height), count(width)] if cross else count(height)


def shard(text: str) -> tuple[int, int]:
    """Parse `3/16` as (3, 16)."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    number, total = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= total:
        raise argparse.ArgumentTypeError(f"must be I/N with I from 1 to N, such as 1/3, got {text}")
    return number, total


def positive(text: str) -> float:
    """Parse a finite number above 0."""
    if not 0 < (number := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return number


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add `--overwrite` to a command that writes files or folders."""
    if any(isinstance(a.type, OutputFile | OutputFolder) for a in parser._actions):
        parser.add_argument(
            "--overwrite", action="store_true",
            help="Replace files that this command did not write, and write in folders that another "
            "command of tinydiffusion made.",
        )  # fmt: skip


def parsed(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Parse the arguments of a command, and check its flags and what it will write."""
    known = parser.parse_args(arguments)
    check_flags(parser, known)
    check_outputs(parser, known)
    return known


def parsed_with_settings(
    parser: argparse.ArgumentParser, arguments: list[str]
) -> tuple[argparse.Namespace, list[str]]:
    """Parse the arguments of a command that also takes any key of a config as a flag.

    Returns:
        The command's own arguments, and the other arguments, which are for the config.
    """
    known, settings = parser.parse_known_args(arguments)
    check_flags(parser, known)
    check_outputs(parser, known)
    return known, settings


def with_plugin_options(
    parser: argparse.ArgumentParser, arguments: list[str]
) -> tuple[argparse.Namespace, dict[str, dict[str, Any]]]:
    """Parse the arguments, with `--fid.weights f.pth` as `{"fid": {"weights": "f.pth"}}`.

    Hyphens in the name of an option become underscores.
    """
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
        plugin, _, option = key.rpartition(".")
        options.setdefault(plugin, {})[option.replace("-", "_")] = value
    known = parser.parse_intermixed_args(own)
    check_flags(parser, known)
    check_outputs(parser, known)
    return known, options
