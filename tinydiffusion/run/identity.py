"""The identity of a run: settings that must not change between a checkpoint and a resumption."""

from typing import Any

from tinydiffusion import config as config_file
from tinydiffusion.config import Config
from tinydiffusion.runtime.compilation import Decision

MAY_CHANGE = (
    "accumulation", "strategy", "device", "num_workers", "checkpoint_every", "keep_checkpoints",
    "disk_wait_minutes", "hang_minutes", "rollback_on_spike", "log_every", "tensorboard",
)  # fmt: skip
"""Training settings that do not decide what is learned: a resumed run may change them."""


def identity_of(config: Config, compilation: Decision) -> dict[str, Any]:
    """Collect the settings that determine what is learned, to the bit, with `compile` decided."""
    values = config_file.to_dict(config)
    training = {k: v for k, v in values["training"].items() if k not in MAY_CHANGE}
    training["compile"] = compilation.mode  # "auto" may be either
    names = ("dataset", "text_encoder", "network", "objective", "diffusion", "seed")
    kept = {name: values[name] for name in names}
    kept["dataset"].pop("workers", None)  # alters no picture
    kept["network"].pop("gradient_checkpointing", None)  # alters no gradient
    return {**kept, "training": training}
