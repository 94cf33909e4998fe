"""Arguments that several commands have in common."""

import argparse
import json
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from tinydiffusion import config, registry

Command = tuple[
    str,
    Callable[[argparse.ArgumentParser], None],
    Callable[[argparse.ArgumentParser, list[str]], int],
]
"""Its line in the help, what adds its arguments, and what runs it."""

MAX_COUNT = 1_000_000

SAMPLING_FLAGS = (
    "sampler", "steps", "spacing", "guidance_scale", "guidance_rescale", "guidance_interval",
)  # fmt: skip
"""Settings of `config.SamplingConfig` that are flags of sample and evaluate."""


class UsageError(ValueError):
    """Arguments that the command does not take."""


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


def prompts_of_file(file: Path) -> list[str]:
    """The prompts of a text file, one a line, or of a `.jsonl` file: `prompt` of every object.

    Raises:
        UsageError: there is no such file, it is not UTF-8, a line is not as it should be, or there
            is no prompt.
    """
    if not file.is_file():
        raise UsageError(f"--prompts {file}: there is no such file")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UsageError(f"--prompts {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--prompts {file}: not a text in UTF-8") from error
    prompts = [line.rstrip("\r") for line in lines if line.strip()]
    if file.suffix == ".jsonl":
        prompts = [_prompt_of(line, f"--prompts {file}") for line in prompts]
    if not prompts:
        raise UsageError(f"--prompts {file}: holds no prompt")
    return prompts


def _prompt_of(line: str, place: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place}: not valid JSON: {line[:60]!r}") from error
    prompt = record.get("prompt") if isinstance(record, dict) else None
    if not isinstance(prompt, str):
        raise UsageError(f"{place}: a line without the text `prompt`: {line[:60]!r}")
    return prompt


def sampling_overrides(known: argparse.Namespace) -> dict[str, Any]:
    """Those of `SAMPLING_FLAGS` that were given."""
    values = {name: getattr(known, name) for name in SAMPLING_FLAGS}
    given = {name: value for name, value in values.items() if value is not None}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}


def count(text: str) -> int:
    """A number in [1, MAX_COUNT]."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    if number > MAX_COUNT:
        raise argparse.ArgumentTypeError(f"must be at most {MAX_COUNT}, got {number}")
    return number


def size(text: str) -> int | list[int]:
    """`32` as 32, the side of a square, and `32x48` as [32, 48], height and width."""
    height, cross, width = text.partition("x")
    return [count(height), count(width)] if cross else count(height)


def shard(text: str) -> tuple[int, int]:
    """`3/16` as (3, 16)."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    number, total = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= total:
        raise argparse.ArgumentTypeError(f"must be I/N with I from 1 to N, such as 1/3, got {text}")
    return number, total


def positive(text: str) -> float:
    """A finite number above 0."""
    if not 0 < (number := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return number


def with_plugin_options(
    parser: argparse.ArgumentParser, arguments: list[str]
) -> tuple[argparse.Namespace, dict[str, dict[str, Any]]]:
    """The parsed arguments, and `--fid.weights f.pth` as `{"fid": {"weights": "f.pth"}}`.

    Hyphens in the name of an option are underscores.
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
    return parser.parse_intermixed_args(own), options
