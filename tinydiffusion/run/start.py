"""The model that a run starts from, where its config names one."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from tinydiffusion.build import build_network
from tinydiffusion.config import Config, ConfigError
from tinydiffusion.model_folder.finding import find_model
from tinydiffusion.model_folder.layout import INDEX, portable
from tinydiffusion.model_folder.opening import open_model


class Start(NamedTuple):
    """A trained network and text encoder, and the hash that identifies them."""

    network: nn.Module
    text_encoder: Any  # see protocols.TextEncoder; a module
    digest: str  # SHA-256 of the folder's index, which has those of the weights


def starting_model(config: Config) -> Start | None:
    """Open the model that `init_from` names; return None where it names none.

    Raises:
        ConfigError: the model is of another shape or meaning than the run's.
        ModelFolderError: there is no model in the folder.
    """
    if config.init_from is None:
        return None
    folder = find_model(Path(config.init_from))
    model = open_model(folder)
    for section in ("text_encoder", "diffusion"):
        there, here = (_options(each, section) for each in (model.config, config))
        for key in sorted(there.keys() | here.keys()):
            _check_same(f"{section}.{key}", there.get(key), here.get(key), folder)
    fresh = build_network(config.network, model.text_encoder, model.image_shape[0])
    there, here = (_shapes(network) for network in (model.network, fresh))
    for name in sorted(there.keys() | here.keys()):
        _check_same(f"the shape of the network's {name}", there.get(name), here.get(name), folder)
    digest = hashlib.sha256((folder / INDEX).read_bytes()).hexdigest()
    return Start(model.network, model.text_encoder, digest)


def _options(config: Config, section: str) -> dict[str, Any]:
    options = getattr(config, section)
    return portable(section, options) if isinstance(options, dict) else vars(options)


def _shapes(module: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in module.state_dict().items()}


def _check_same(what: str, there: Any, here: Any, folder: Path) -> None:
    if there != here:
        raise ConfigError(
            f"init_from {folder}: {what} is {there} there and {here} in this run; a run goes on "
            "from a model of its own kind only"
        )
