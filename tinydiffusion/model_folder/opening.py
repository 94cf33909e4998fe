"""Opening a model folder from any source.

Only its JSON and safetensors files are read. They must lie in the folder, their sizes and shapes
are checked before memory is allocated, and they cannot name code or paths.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from torch import nn

from tinydiffusion import registry
from tinydiffusion.config import Config, from_dict, plugin
from tinydiffusion.model_folder import strict_json
from tinydiffusion.model_folder.layout import (
    CHECKSUMS,
    COMPONENTS,
    INDEX,
    WEIGHTS,
    Model,
    network_sizes,
)
from tinydiffusion.model_folder.weights import build_fitting, load_weights, read_header

MAX_CHANNELS, MAX_SIDE = 4, 2048

PLACE = re.compile(r"^[/\\~]|^[A-Za-z]:[/\\]|(^|[/\\:])\.\.([/\\]|$)|://|^local-dir:")
"""A value that names a place: a path from a root or a home, or upwards, or an address."""


class ModelFolderError(ValueError):
    """A folder that is not a model, not a complete one, or not one that is safe to open."""


def open_model(folder: Path, *, trust_plugins: bool = False) -> Model:
    """Open the model in a folder, in eval mode on the CPU.

    Args:
        folder: A folder that `save_model` wrote, or any other, which is not trusted.
        trust_plugins: Import plug-ins that the folder names as `module:attribute`.

    Raises:
        ModelFolderError: a file is missing, damaged, does not fit or is not safe, and is named.
    """
    with reading(folder, INDEX) as file:
        index = _read_json(file)
        settings = read_settings(
            index["tinydiffusion_config"], index["image_shape"], trust_plugins=trust_plugins
        )
    network = load_component(folder / "network", trust_plugins=trust_plugins)
    text_encoder: Any = load_component(folder / "text_encoder", trust_plugins=trust_plugins)
    with reading(folder, "network/config.json") as file:
        options = _read_json(file)
        for name, size in network_sizes(text_encoder, settings[1]).items():
            if options.get(name) != size:
                raise ValueError(f"{name} is {options.get(name)!r}, the other files say {size}")
    return Model(network, text_encoder, *settings)


def read_settings(
    config: Any, image_shape: Any, *, trust_plugins: bool = False
) -> tuple[Config, tuple[int, int, int]]:
    """Check the config and image shape of `model_index.json`; the shape is (C, H, W).

    Raises:
        ValueError: either is out of its range, or the config names code that is not trusted.
    """
    settings = from_dict(config)
    for name in _plugin_names(settings):
        _check_trust(name, trust_plugins)
    limits = (MAX_CHANNELS, MAX_SIDE, MAX_SIDE)
    if not registry.fits(image_shape, tuple[int, int, int]) or not all(
        1 <= size <= limit for size, limit in zip(image_shape, limits, strict=True)
    ):
        raise ValueError(
            f"image_shape must be (channels, height, width), at most {limits}, got {image_shape!r}"
        )
    channels, height, width = image_shape
    return settings, (channels, height, width)


def load_component(folder: Path, *, trust_plugins: bool = False) -> nn.Module:
    """Load the component of a model folder from its sub-folder, in eval mode on the CPU.

    Raises:
        ModelFolderError: a file is missing, damaged, does not fit or is not safe, and is named.
    """
    root, kind = folder.parent, folder.name
    checksums = _checksums(root)
    with reading(root, f"{kind}/{WEIGHTS}") as file:
        header = read_header(file)
    with reading(root, f"{kind}/config.json") as file:
        name, options = plugin(_read_json(file))
        _check_name(name, trust_plugins)
        if not _is_module_class(registry.load(kind, name)):
            raise ValueError(f"{kind} {name!r} is not a class of nn.Module")
        _check_options(kind, name, options)
        _verify(file, checksums[f"{kind}/config.json"])
        module = build_fitting(partial(registry.create, kind, name, **options), header)
    with reading(root, f"{kind}/{WEIGHTS}") as file:
        _verify(file, checksums[f"{kind}/{WEIGHTS}"])
        load_weights(module, file)
    return module.eval()


@contextmanager
def reading(root: Path, name: str) -> Iterator[Path]:
    """Raise ModelFolderError, in one line, in place of any error on a file inside the `with`."""
    file = root / name
    try:
        if not file.is_file():
            raise ModelFolderError(f"{file} is missing: {root} is not a complete model folder")
        if not _lies_in(root.resolve(), file.resolve()):
            raise ModelFolderError(f"{file} is a link out of the model folder")
        yield file
    except ModelFolderError:
        raise
    except Exception as error:  # a plug-in may raise anything for unexpected options
        raise ModelFolderError(f"{file} does not describe a model: {_one_line(error)}") from error


def _lies_in(root: Path, file: Path) -> bool:
    """Return whether a file is of the folder; the hub's cache keeps links to the model's blobs."""
    if file.is_relative_to(root):
        return True
    repository = root.parent.parent
    in_cache = root.parent.name == "snapshots" and repository.name.startswith("models--")
    return in_cache and file.parent == repository / "blobs"


def _one_line(error: Exception) -> str:
    """Return the message in at most 500 characters, without line breaks and control characters."""
    text = " ".join(str(error).split()) if str(error) else type(error).__name__
    text = f"no key {text}" if isinstance(error, KeyError) else text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:500])


def _read_json(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return strict_json.read_object(stream.read(strict_json.MAX_BYTES + 1))


def _checksums(root: Path) -> dict[str, str]:
    with reading(root, INDEX) as file:
        checksums = _read_json(file)[CHECKSUMS]
        names = {f"{kind}/{name}" for kind in COMPONENTS for name in ("config.json", WEIGHTS)}
        if not registry.fits(checksums, dict[str, str]) or checksums.keys() != names:
            raise ValueError(f"{CHECKSUMS} must have the sha256 of {', '.join(sorted(names))}")
    return checksums


def _verify(file: Path, sha256: str) -> None:
    with file.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
            raise ValueError(f"its sha256 is not the one in {INDEX}: damaged, or edited")


def _check_name(name: Any, trust_plugins: bool) -> None:
    if not isinstance(name, str):
        raise ValueError(f"name must be a text, got {name!r}")
    _check_trust(name, trust_plugins)


def _check_options(kind: str, name: str, options: dict[str, Any]) -> None:
    declared = registry.path_options(kind, name)
    named = (option for option in declared if options.get(option) is not None)
    if found := next(chain(named, _naming_places(options)), None):
        raise ValueError(f"the option {found!r} names a path; a model folder may not")


def _check_trust(name: str, trust_plugins: bool) -> None:
    if ":" in name and not trust_plugins:
        raise ValueError(
            f"the plug-in {name!r} is code that is not installed; where you know it, allow it with "
            "trust_plugins=True, on the command line --trust-plugins"
        )


def _plugin_names(config: Config) -> Iterator[str]:
    for section in (
        config.dataset, config.validation, config.text_encoder, config.network, config.objective
    ):  # fmt: skip
        yield from _names(section)
    yield config.sampling.sampler
    yield from config.evaluation.metrics
    yield from config.evaluation.options
    yield from _names(config.evaluation.options)


def _names(options: Any) -> Iterator[str]:
    """Yield the values of all `name` keys, nested ones too: a data set may be made of others."""
    if isinstance(options, list | tuple):
        for item in options:
            yield from _names(item)
    elif isinstance(options, dict):
        for key, value in options.items():
            if key == "name":
                yield str(value)
            yield from _names(value)


def _naming_places(options: Any) -> Iterator[str]:
    """Yield the options, nested ones too, whose value is a place on a disk or an address.

    Texts in lists are left out: the words of a vocabulary may be anything.
    """
    if isinstance(options, list):
        for item in options:
            yield from _naming_places(item)
    elif isinstance(options, dict):
        for name, value in options.items():
            if isinstance(value, str) and PLACE.search(value):
                yield name
            yield from _naming_places(value)


def _is_module_class(loaded: Any) -> bool:
    """Return whether a plug-in is a class of nn.Module.

    Nothing else is called with the options of a downloaded file: `subprocess:run` would be code.
    """
    return isinstance(loaded, type) and issubclass(loaded, nn.Module)
