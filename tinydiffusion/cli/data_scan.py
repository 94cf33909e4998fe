"""`tinydiffusion data`: which pictures training will see, which it will not, and why."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tinydiffusion import registry
from tinydiffusion.build import build_dataset, build_training, build_validation, held_out_fraction
from tinydiffusion.cli.data_table import (
    describe_brightness,
    describe_captions,
    describe_groups,
    describe_scan,
    find_groups,
    save_json,
    save_sheet,
)
from tinydiffusion.config import Config, ConfigError
from tinydiffusion.pictures.caption_files import SIDECARS
from tinydiffusion.pictures.decode import is_picture_name
from tinydiffusion.pictures.metadata import metadata_files
from tinydiffusion.pictures.packed import PackedDataset, TooManySkippedError
from tinydiffusion.pictures.scan import Scan
from tinydiffusion.protocols import Dataset
from tinydiffusion.shards.addresses import is_shards

Builders = dict[str, Callable[[], Dataset | None]]  # by split

console = Console(highlight=False, markup=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def data(
    paths: Sequence[Path],
    *,
    settings: Config | None,
    size: int | list[int] | None,
    caption_column: str | None,
    captions: str | None,
    workers: int,
    json_file: Path | None,
    sheet: Path | None,
) -> int:
    """Scan the sets, each built as training builds it, and print what was found.

    Args:
        paths: Each holds one set, or several in sub-folders; none takes those of `settings`.
        settings: A run, whose options of the data set and text encoder are taken.
        size: Option of the data sets; None takes the value of `settings` or their default.
        caption_column: Option of the data sets, as `size`.
        captions: Option of the data sets, as `size`.
        workers: Threads that decode.
        json_file: Where to write all samples and all that is skipped, even if nothing is usable.
        sheet: Where to write a contact sheet.

    Returns:
        The exit code, 0.

    Raises:
        ValueError: no such set, no usable picture in one, broken metadata, or a file that cannot
            be written.
    """
    own = {"size": size, "caption_column": caption_column, "captions": captions, "workers": workers}
    options = {name: value for name, value in own.items() if value is not None}
    if paths:
        builders = _builders_of(paths, settings, options)
    else:
        assert settings is not None, "the command line asks for paths or a config"
        builders = _builders_of_run(settings, options)
    results = {split: _scan(split, build) for split, build in builders.items()}
    scans = {split: scan for split, (scan, _) in results.items()}
    duplicates, shared = find_groups(scans)
    unusable = [refusal for scan, refusal in results.values() if not scan.samples]
    if not unusable:
        _say_of_each(scans)
        _say(describe_groups("duplicates (the same pixels again)", duplicates))
        if len(scans) > 1:
            _say(describe_groups("pictures shared between sets", shared))
        encoder = {"name": "clip"} if settings is None else settings.text_encoder
        _say(describe_captions(scans, encoder))
    if json_file is not None:
        save_json(json_file, scans, duplicates, shared)
    if unusable:
        raise ConfigError(unusable[0])
    if sheet is not None:
        save_sheet(sheet, scans)
    for _, refusal in results.values():
        if refusal:
            errors.print(f"warning: training would refuse this: {refusal}")
    return 0


def _say_of_each(scans: dict[str, Scan]) -> None:
    for split, scan in scans.items():
        _say(describe_scan(split, scan))
        if remark := describe_brightness(scan):
            errors.print(f"warning: {split}: {remark}")


def _say(text: str) -> None:
    console.print(text)


# ---- which sets ------------------------------------------------------------------------------


def _builders_of(
    paths: Sequence[Path], settings: Config | None, options: dict[str, Any]
) -> Builders:
    of_run = {} if settings is None else settings.dataset
    by_folder = options.get("captions", of_run.get("captions")) == "folder"
    folders = [part for path in paths for part in ([path] if by_folder else _splits(path))]
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = list(map(str, folders))
    if len(set(names)) < len(names):
        raise ConfigError(f"a set is named twice: {', '.join(names)}")
    builders: Builders = {}
    for name, folder in zip(names, folders, strict=True):
        section = _section(folder, settings, options)
        builders[name] = lambda section=section: build_dataset(section)
    return builders


def _splits(path: Path) -> list[Path]:
    """List the sub-folders of a folder if these are sets and it is not, else the folder itself."""
    if not path.is_dir() or is_shards(path) or _is_set(path):
        return [path]
    folders = [sub for sub in path.iterdir() if sub.is_dir() and not sub.name.startswith(".")]
    splits = [folder for folder in folders if _is_set(folder)]
    if not any(map(_has_captions, splits)):  # class folders, perhaps
        return [path]
    # The text encoder learns its words from the captions of the first split.
    return sorted(splits, key=lambda folder: (folder.name != "train", folder.name))


def _is_set(folder: Path) -> bool:
    """Return whether pictures or their metadata lie in the folder itself."""
    names = _names(folder)
    return bool(metadata_files(names)) or any(map(is_picture_name, names))


def _has_captions(folder: Path) -> bool:
    names = _names(folder)
    return bool(metadata_files(names)) or any(name.lower().endswith(SIDECARS) for name in names)


def _names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]


def _section(path: Path, settings: Config | None, options: dict[str, Any]) -> dict[str, Any]:
    """Make the `dataset` section of a path, from the run's section where that fits the path."""
    name = "tar" if is_shards(path) else "folder"
    same = settings is not None and settings.dataset["name"] == name
    base = settings.dataset if settings is not None and same else {"name": name}
    return {**base, **_fitting(name, options), "path": str(path)}


def _fitting(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options, without `workers` where the data set does not take it."""
    takes_workers = registry.takes(registry.load("dataset", name), "workers")
    return {k: v for k, v in options.items() if k != "workers" or takes_workers}


def _builders_of_run(settings: Config, options: dict[str, Any]) -> Builders:
    dataset = {**settings.dataset, **_fitting(settings.dataset["name"], options)}
    run = dataclasses.replace(settings, dataset=dataset)
    builders: Builders = {"train": lambda: build_training(run)}
    if held_out_fraction(run) is not None:
        builders["validation"] = lambda: build_validation(run)
    elif settings.validation is not None:
        name = settings.validation.get("name", dataset["name"])
        validation = {**settings.validation, **_fitting(name, options)}
        whole = dataclasses.replace(run, validation=validation)
        builders["validation"] = lambda: build_validation(whole)
    return builders


def _scan(split: str, build: Callable[[], Dataset | None]) -> tuple[Scan, str]:
    """Build a set, and return its scan and the reason why training would refuse it, or "".

    Raises:
        ValueError: the set is broken.
    """
    try:
        dataset = build()
    except TooManySkippedError as error:
        return error.scan, str(error)
    if not isinstance(dataset, PackedDataset):
        raise ConfigError(f"the {split} set is not read from picture files; nothing to scan")
    return dataset.scan, ""
