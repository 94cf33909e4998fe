"""The settings of a run: frozen dataclasses are the schema of the YAML files and of the flags.

Sections with a fixed set of keys are typed here. Sections that name a plug-in (`dataset`,
`network`, ...) hold its `name` and the keyword arguments that the plug-in itself declares; those
are checked when it is built, before anything is computed.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tinydiffusion.registry import suggest


class ConfigError(ValueError):
    """A setting that does not exist or does not have the right type."""


@dataclass(frozen=True)
class DiffusionConfig:
    """Noise levels and what the network predicts."""

    schedule: str = "flow"
    """"linear", "scaled_linear", "cosine" or "flow"."""
    num_train_timesteps: int = 1000
    """Number of noise levels."""
    zero_terminal_snr: bool = False
    """Let the last level be pure noise."""
    shift: float = 1.0
    """Of "flow": above 1 moves the levels to higher noise."""
    prediction_type: str = "flow"
    """"epsilon", "v_prediction", "sample" or "flow"."""


@dataclass(frozen=True)
class TrainingConfig:
    """The trainer."""

    num_pictures: int = 100_000
    """Pictures to train on, repeats included."""
    max_minutes: float | None = None
    """Wall-clock budget; a machine too slow for num_pictures ends here, learning rate decayed."""
    batch_size: int = 64
    """Pictures between two weight updates."""
    accumulation: int = 1
    """Parts that a batch is cut into, to save memory."""
    learning_rate: float = 1e-3
    """Peak of AdamW's learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's."""
    weight_decay: float = 0.01
    """AdamW's, on matrices only."""
    warmup_pictures: int = 10_000
    """Pictures over which the learning rate rises."""
    decay_fraction: float = 0.3
    """Last share of the run over which it falls to 0."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient."""
    ema_max_decay: float = 0.9999
    """Limit of the weight average's decay."""
    ema_power: float = 0.75
    """How fast it gets there, as a power of the step."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the arithmetic; "auto" takes bfloat16 where the processor gains from it."""
    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:1", "mps"."""
    num_workers: int = 0
    """Processes that prepare pictures; 0 = a thread."""
    checkpoint_every: int = 20_000
    """Pictures between two checkpoints."""
    keep_checkpoints: int = 2
    """Checkpoints to keep."""
    log_every: int = 2_000
    """Pictures between two rows of metrics.jsonl."""
    tensorboard: bool = False
    """Log to TensorBoard too."""


@dataclass(frozen=True)
class SamplingConfig:
    """The sample grids of training, and the defaults that travel with the model."""

    sampler: str = "euler"
    """A sampler plug-in."""
    steps: int = 20
    """Sampling steps."""
    spacing: str = "trailing"
    """Which noise levels: "trailing", "leading", "linspace" or "karras"."""
    guidance_scale: float = 2.0
    """Classifier-free guidance; 1 = off."""
    guidance_rescale: float = 0.0
    """Share of the guided picture's contrast taken back, in [0, 1]."""
    every: int = 20_000
    """Pictures between two sample grids and validation losses."""
    prompts: tuple[str, ...] = ()
    """Fixed prompts of the grids; none = captions of the validation set."""
    num_prompts: int = 32
    """How many captions to take where there are no prompts."""


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured when training ends."""

    metrics: tuple[str, ...] = ()
    """Evaluator plug-ins; none = no evaluation."""
    num_images: int = 512
    """Pictures to make."""
    reference: Literal["train", "validation"] = "validation"
    """The set whose captions are prompts and whose pictures are the reference."""
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Evaluator -> its options."""


@dataclass(frozen=True)
class Config:
    """A run."""

    dataset: dict[str, Any] = field(default_factory=lambda: {"name": "scenes"})
    """Training pictures: plug-in `name` and its options."""
    validation: dict[str, Any] | None = None
    """Held-out pictures; what is not given is as in `dataset`. None = no validation."""
    text_encoder: dict[str, Any] = field(default_factory=lambda: {"name": "clip"})
    """Text encoder plug-in and its options."""
    network: dict[str, Any] = field(default_factory=lambda: {"name": "unet"})
    """Network plug-in and its options."""
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "denoising"})
    """Objective plug-in and its options."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = 0
    """Of everything random."""


PLUGIN_SECTIONS = ("dataset", "text_encoder", "network", "objective")


def to_dict(config: Config) -> dict[str, Any]:
    """The config as nested dicts and lists, ready for YAML or JSON."""
    return _plain(dataclasses.asdict(config))


def from_dict(values: dict[str, Any]) -> Config:
    """The config of nested dicts, such as `to_dict` returns.

    Raises:
        ConfigError: an unknown key or a wrong type.
    """
    parser = _parser()
    return _read(lambda: parser.instantiate(parser.parse_object(values)))


def load(file: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """The config of a YAML file, with overrides such as `["--training.batch_size", "32"]`.

    Raises:
        ConfigError: a missing file, YAML that cannot be read, an unknown key or a wrong type; one
            line that names the key, the value received and what is allowed.
    """
    parser = _parser()
    arguments = [] if file is None else ["--config", str(file)]
    return _read(lambda: parser.instantiate(parser.parse_args([*arguments, *overrides])))


def save(config: Config, file: Path) -> None:
    """Write the config as YAML."""
    import yaml

    file.write_text(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))


def help_text() -> str:
    """Every key with its type, default and meaning."""
    return _parser().format_help().partition("\n\n")[2]


def plugin(section: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The plug-in's name and its options, out of a section such as `dataset`."""
    return section["name"], {key: value for key, value in section.items() if key != "name"}


def _parser() -> Any:
    import jsonargparse

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_argument("--config", action="config", help="A YAML file with any of these keys.")
    parser.add_class_arguments(Config)
    return parser


def _read(parse: Callable[[], Any]) -> Config:
    """The config that `parse` makes; its complaints in one line each, with the nearest key."""
    from argparse import ArgumentError

    try:
        values = parse().as_dict()
    except ArgumentError as error:
        raise ConfigError(_one_line(str(error))) from error
    del values["config"]
    config = Config(**values)
    for section in PLUGIN_SECTIONS:
        if not isinstance(getattr(config, section).get("name"), str):
            raise ConfigError(f"{section} needs a name, got {getattr(config, section)}")
    return config


def _one_line(complaint: str) -> str:
    """The parser's complaint on one line, with the nearest key where a key is unknown."""
    line = re.sub(r"<class '(\w+)'>", r"\1", " ".join(complaint.split()))
    line = re.sub(r"Parser key \"([\w.]+)\": Expected an?", r"\1 must be", line)
    for pattern in _UNKNOWN_KEY:
        if match := re.search(pattern, line):
            key = ".".join(match.groups())
            return f"unknown key {key!r}{_nearest(key)}"
    return line


_UNKNOWN_KEY = (
    r"unrecognized arguments: --([\w.-]+)",
    r"'(\w+)' does not accept option '(\w+)'",
    r"Option '([\w.]+)' is not accepted",
)


def _nearest(key: str) -> str:
    sections = to_dict(Config())
    section, _, _ = key.partition(".")
    if not isinstance(sections.get(section), dict):
        return suggest(section, list(sections)) or f"; the sections are {', '.join(sections)}"
    known = [f"{section}.{name}" for name in sections[section]]
    return suggest(key, known) or f"; its keys are {', '.join(sections[section])}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
