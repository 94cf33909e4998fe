"""What a model folder consists of.

model_index.json                              picture size, the run's config, sha256 of the rest
network/config.json                           plug-in name and options
network/diffusion_pytorch_model.safetensors
text_encoder/...                              likewise
pipeline.py                                   for diffusers; never run or read here
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

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

PATH_OPTION = re.compile(r"(.*_)?(path|dir|directory|file|folder|root)s?", re.IGNORECASE)
"""Options that name files: dropped when a model is saved, refused when one is opened."""


class Model(NamedTuple):
    """What a model folder holds."""

    network: nn.Module
    text_encoder: Any  # see protocols.TextEncoder; a module
    config: Config
    image_shape: tuple[int, ...]  # C, H, W


def network_sizes(text_encoder: TextEncoder, image_shape: Sequence[int]) -> dict[str, int]:
    """Options of a network that follow from the rest of the model."""
    return {
        "text_dim": text_encoder.hidden_size,
        "pooled_dim": text_encoder.pooled_size,
        "in_channels": image_shape[0],
    }
