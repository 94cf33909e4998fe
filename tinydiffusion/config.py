"""The settings of a run: frozen dataclasses are the schema of the YAML files and of the flags.

Sections with a fixed set of keys are typed here. Sections that name a plug-in (`dataset`,
`network`, ...) hold its `name` and the keyword arguments that the plug-in itself declares; those
are checked when it is built, before anything is computed.
"""

import ast
import dataclasses
import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from tinydiffusion import registry
from tinydiffusion.registry import shown, type_name
from tinydiffusion.runtime import strict_yaml
from tinydiffusion.runtime.durable import replace_file


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
    """Pictures between two weight updates, of all processes together."""
    accumulation: int = 1
    """Parts that a batch is cut into, to save memory; several processes share them."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Of several processes: the whole model in each, or a part of every tensor in each."""
    learning_rate: float = 1e-3
    """Peak of AdamW's learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's."""
    weight_decay: float = 0.01
    """On matrices and kernels only."""
    muon_modules: tuple[str, ...] = ()
    """Modules whose linear layers and convolutions Muon trains; AdamW trains the rest."""
    muon_learning_rate: float = 0.01
    """Peak of Muon's learning rate."""
    warmup_pictures: int = 10_000
    """Pictures over which the learning rates rise."""
    decay_fraction: float = 0.3
    """Last share of the run over which they fall to 0."""
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
    compile: Literal["auto", "always", "never"] = "auto"
    """Use torch.compile; "auto" does in a run that is long enough to repay its warm-up."""
    num_workers: int = 0
    """Processes that prepare pictures; 0 = a thread."""
    checkpoint_every: int = 20_000
    """Pictures between two checkpoints."""
    keep_checkpoints: int = 2
    """Checkpoints to keep."""
    disk_wait_minutes: float = 10.0
    """How long a full or unreachable disk halts the run before it ends it."""
    hang_minutes: float | None = 30.0
    """End a run in which no step gets done for so long; null = never."""
    rollback_on_spike: bool = False
    """Go back to the last checkpoint when the loss leaves its usual range."""
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
    guidance_interval: tuple[float, float] | None = None
    """Noise levels (noise / signal) that are guided, above the first to the second; null = all."""
    every: int = 20_000
    """Pictures between two sample grids and validation losses."""
    prompts: tuple[str, ...] = ()
    """Fixed prompts of the grids; none = captions of the training and the validation set."""
    num_prompts: int = 32
    """How many captions to take where there are no prompts."""


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured when training ends, and on the way."""

    metrics: tuple[str, ...] = ()
    """Evaluator plug-ins; none = no evaluation."""
    num_images: int = 512
    """Pictures to make."""
    every: int | None = None
    """Pictures seen between two evaluations on the way; null = at the end only."""
    every_num_images: int = 64
    """Pictures to make on the way."""
    keep_best: str | None = None
    """Row, such as scene_accuracy, by which the best model on the way is kept in best/."""
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
    """Held-out pictures: as `dataset` but for what is given, or a `fraction` of it; None = none."""
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
    init_from: str | None = None
    """Model folder whose weights training begins with; null = random ones."""
    seed: int = 0
    """Of everything random."""


PLUGIN_SECTIONS = ("dataset", "text_encoder", "network", "objective")
KEYS = [
    key
    for f in fields(Config)
    for key in (
        [f.name]
        + [f"{f.name}.{g.name}" for g in (fields(f.type) if is_dataclass(f.type) else ())]
        + [f"{f.name}.name" for _ in range(f.name in (*PLUGIN_SECTIONS, "validation"))]
    )
]
"""Every section and key with a type in this file; plug-ins add their options."""


def to_dict(config: Config | SamplingConfig) -> dict[str, Any]:
    """Convert a config, or its sampling section, to nested dicts and lists for YAML or JSON."""
    return _plain(dataclasses.asdict(config))


def from_dict(values: dict[str, Any]) -> Config:
    """Make a config from nested dicts, as `to_dict` returns them; missing keys have defaults.

    Raises:
        ConfigError: an unknown key or a wrong type.
    """
    config = _section(Config, values, "")
    sections = {name: getattr(config, name) for name in PLUGIN_SECTIONS}
    sections["validation"] = {"name": config.dataset.get("name"), **(config.validation or {})}
    for name, section in sections.items():
        if not isinstance(section.get("name"), str):
            raise ConfigError(f"{name}.name must be the name of a plug-in, got {shown(section)}")
    return config


def load(file: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read the config of a YAML file, with overrides such as `["--training.batch_size", "32"]`.

    Raises:
        ConfigError: a missing file, YAML that cannot be read, an unknown key or a wrong type; one
            line that names the key, the value received and what is allowed.
    """
    values = to_dict(Config()) | ({} if file is None else read_file(Path(file)))
    flags = read_flags(overrides)
    for key in flags:
        section, _, option = key.partition(".")
        named = values.get(section)
        if option == "name" and isinstance(named, dict) and named.get("name") != flags[key]:
            values[section] = {}  # another plug-in has other options
    for key, value in flags.items():
        _put(values, key, value)
    return from_dict(values)


def save(config: Config, file: Path) -> None:
    """Write the config to a YAML file; a reader sees the whole file or the one before."""
    replace_file(file, to_yaml(config))


def to_yaml(config: Config) -> bytes:
    """Format the config as the text of a YAML file, every default included."""
    return strict_yaml.write(to_dict(config)).encode()


def read_flags(arguments: Sequence[str]) -> dict[str, Any]:
    """Read keys and YAML values of flags such as `["--training.batch_size", "32", "--seed=1"]`.

    Raises:
        ConfigError: an argument is no flag, or a flag has no value or broken YAML.
    """
    flags = {}
    words = iter(arguments)
    for word in words:
        flag, equals, text = word.partition("=")
        if not flag.startswith("--"):
            raise ConfigError(f"unknown argument {word!r}")
        text = text if equals else next(words, "--")
        if text.startswith("--"):
            raise ConfigError(f"{flag} has no value, or is no flag")
        flags[flag.removeprefix("--")] = _read_yaml(text, flag)
    return flags


def unknown_key(key: str, known: Sequence[str]) -> ConfigError:
    """Make the error for an unknown key, with the nearest known key or those of the section."""
    section = key.rpartition(".")[0]
    near = _nearest(key, known)
    if near is not None:
        return ConfigError(f"unknown key {key!r} (did you mean {near!r}?)")
    siblings = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == section]
    return ConfigError(f"unknown key {key!r}; there are {', '.join(siblings)}")


@cache
def help_text() -> str:
    """Describe every key with its type, meaning and default."""
    return "\n".join(_help_lines(Config(), ""))


def plugin(section: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Split a section such as `dataset` into the plug-in's name and its options."""
    return section["name"], {key: value for key, value in section.items() if key != "name"}


def read_file(file: Path) -> dict[str, Any]:
    """Read the keys and values of a YAML file; an empty file has none.

    Raises:
        ConfigError: a missing file, or YAML that cannot be read.
    """
    name = str(file) if str(file).isprintable() else repr(str(file))
    try:
        if file.is_dir():
            raise ConfigError(f"the config file {name} is a folder; give a YAML file")
        if not file.is_file():
            raise ConfigError(f"there is no config file {name}")
        with file.open("rb") as stream:
            data = stream.read(strict_yaml.MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the config file {name}: {error.strerror}") from error
    values = _read_yaml(data, name)
    if not isinstance(values, dict | None):
        raise ConfigError(
            f"{name} must hold keys and values such as `seed: 0`, got {shown(values)}"
        )
    return values or {}


def _read_yaml(data: bytes | str, source: str) -> Any:
    try:
        return strict_yaml.read(data, source)
    except strict_yaml.YamlError as error:
        raise ConfigError(str(error)) from error


def _nearest(key: str, known: Sequence[str]) -> str | None:
    """Find the known key nearest to an unknown one: in its section if one is near, else in any."""
    section, _, name = key.lower().replace("-", "_").rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
    others = {k.rpartition(".")[2]: k for k in reversed(known)}
    for names, cutoff in ((siblings, 0.85), (others, 1.0), (siblings, 0.6), (others, 0.75)):
        if (near := registry.nearest(name, names, cutoff)) is not None:
            return names[near]
    return None


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at a dotted key, and create missing sections."""
    *sections, name = key.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise ConfigError(f"--{key} cannot be set: {section} holds {shown(values)}, not keys")
    values[name] = value


def _section(schema: type, values: Any, section: str) -> Any:
    """Make an instance of the dataclass from the values, checked key by key."""
    if not isinstance(values, dict):
        raise ConfigError(f"{section or 'a config'} must hold keys, got {shown(values)}")
    types = {f.name: f.type for f in fields(schema)}
    checked = {}
    for name, value in values.items():
        key = f"{section}.{name}".lstrip(".")
        if name not in types:
            raise unknown_key(key, KEYS)
        checked[name] = _value(types[name], value, key)
    return schema(**checked)


def _value(annotation: Any, value: Any, key: str) -> Any:
    if isinstance(annotation, type) and is_dataclass(annotation):
        return _section(annotation, value, key)
    if isinstance(value, dict):
        for name, inner in value.items():  # a wrong number is reported under its own key
            _value(Any, inner, f"{key}.{name if str(name).isprintable() else repr(name)}")
    if wrong := registry.complaint(value, annotation):
        raise ConfigError(f"{key} {wrong}")
    value = registry.with_fractions(value, annotation)
    return tuple(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _help_lines(settings: Any, prefix: str) -> Iterator[str]:
    meanings = _meanings(type(settings))
    for f in fields(settings):
        default = getattr(settings, f.name)
        if is_dataclass(default):
            yield from _help_lines(default, f"{f.name}.")
            continue
        yield f"  --{prefix}{f.name}: {type_name(f.type)} = {json.dumps(_plain(default))}"
        yield f"        {meanings[f.name]}"


def _meanings(schema: type) -> dict[str, str]:
    """Read the docstring below each field."""
    body: Any = ast.parse(inspect.getsource(schema)).body[0]
    return {
        ast.unparse(line.target): ast.literal_eval(after.value)
        for line, after in pairwise(body.body)
        if isinstance(line, ast.AnnAssign) and isinstance(after, ast.Expr)
    }
