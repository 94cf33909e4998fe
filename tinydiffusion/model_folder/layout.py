"""What a model folder consists of.

model_index.json                              picture size, the run's config, sha256 of the rest
network/config.json                           plug-in name and options
network/diffusion_pytorch_model.safetensors
text_encoder/...                              the same files
pipeline.py                                   for diffusers; never run or read here
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from tinydiffusion import registry
from tinydiffusion.config import Config
from tinydiffusion.protocols import TextEncoder

COMPONENTS = ("network", "text_encoder")
WEIGHTS = "diffusion_pytorch_model.safetensors"
"""Weights of a component; diffusers downloads no other name where transformers is missing."""
INDEX = "model_index.json"
CHECKSUMS = "_sha256"

PIPELINE_SOURCE = '''"""Lets diffusers open this folder; needs the package tinydiffusion."""

from tinydiffusion.diffusers_pipeline import Component, TextToImagePipeline

__all__ = ["Component", "TextToImagePipeline"]
'''
"""`pipeline.py` of a model folder and of its components: diffusers loads classes from there."""


class Model(NamedTuple):
    """The content of a model folder."""

    network: nn.Module
    text_encoder: Any  # see protocols.TextEncoder; a module
    config: Config
    image_shape: tuple[int, ...]  # C, H, W


def portable(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out options that name files of this machine, see `registry.path_options`.

    Args:
        kind: Kind of a component.
        options: Its section of the config, or its `config.json`, with the plug-in's name.
    """
    paths = registry.path_options(kind, options["name"])
    return {name: value for name, value in options.items() if name not in paths}


def network_sizes(text_encoder: TextEncoder, image_shape: Sequence[int]) -> dict[str, int]:
    """Return the options of a network that follow from the rest of the model."""
    return {
        "text_dim": text_encoder.hidden_size,
        "pooled_dim": text_encoder.pooled_size,
        "in_channels": image_shape[0],
    }
