"""Drop the settings of a config file for its own pictures where a run has other pictures."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinydiffusion import config as config_file
from tinydiffusion.config import Config

SAME_PICTURES = (
    "size", "crop", "fit", "flip", "limit", "max_value", "window", "cache_gb", "workers",
)  # fmt: skip
"""Options of data sets that alter how pictures are read, but not which pictures there are."""


def load_noting(file: str | Path, overrides: Sequence[str]) -> tuple[Config, list[str]]:
    """Read a config, leaving out prompts of the file where the overrides name other pictures.

    Args:
        file: YAML file.
        overrides: Flags, see `config.load`.

    Returns:
        The config, and remarks on it for the user, one per line.

    Raises:
        ConfigError: see `config.load`.
    """
    settings = config_file.load(file, overrides)
    in_file = config_file.read_file(Path(file))
    before = in_file.get("dataset", Config().dataset)
    if not isinstance(before, dict) or _pictures_of(before) == _pictures_of(settings.dataset):
        return settings, []
    flags = {key.removesuffix(".prompts") for key in config_file.read_flags(overrides)}
    notes = []
    if settings.sampling.prompts and "sampling" not in flags:
        settings = replace(settings, sampling=replace(settings.sampling, prompts=()))
        notes.append(
            f"sampling.prompts of {file} are for its own data set and left out; the grids show "
            "captions of yours (--sampling.prompts names others)"
        )
    given = any(flag.partition(".")[0] == "validation" for flag in flags)
    if {"name", "path"} & (settings.validation or {}).keys() and not given:
        notes.append(
            f"the validation set is still that of {file}, beside another training set: name yours "
            "with --validation.path, or have none with --validation null"
        )
    return settings, notes


def _pictures_of(dataset: dict[str, Any]) -> dict[str, Any]:
    """Select from a `dataset` section the options that determine its pictures and captions."""
    return {key: value for key, value in dataset.items() if key not in SAME_PICTURES}
