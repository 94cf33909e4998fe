"""From the config to components: the only file that knows both."""

import copy
import warnings
from collections.abc import Iterable, Iterator, Sequence
from inspect import Parameter
from typing import Any, NamedTuple

import torch
from torch import nn

from tinydiffusion import registry
from tinydiffusion.abilities import Divisible, PrescribesSampling, Streaming, undeclared
from tinydiffusion.config import KEYS, PLUGIN_SECTIONS, Config, ConfigError, plugin, unknown_key
from tinydiffusion.diffusion.denoiser import Denoiser
from tinydiffusion.diffusion.schedule import Schedule, make_schedule
from tinydiffusion.protocols import Dataset, Evaluator, TextEncoder
from tinydiffusion.runtime.compilation import Decision, compile_obstacle, decide
from tinydiffusion.runtime.errors import SettingWarning
from tinydiffusion.runtime.processes import ALONE, Processes
from tinydiffusion.training.learner import Learner

OURS = {
    "network": ("text_dim", "pooled_dim", "in_channels"),
    "objective": ("denoiser", "text_encoder", "teacher"),
    "sampler": ("generators", "train_sigmas"),
}
"""Plug-in kind -> arguments that are not the user's to set."""


class _Use(NamedTuple):
    """A plug-in in a config: the section that names it, and the options that it is given."""

    section: str
    kind: str
    name: str
    options: dict[str, Any]

    def allowed(self) -> dict[str, Parameter] | None:
        """Return the options that a config may set; None where it may set any."""
        loaded: Any = registry.load(self.kind, self.name)
        options = registry.options_of(
            loaded.from_captions if self.kind == "text_encoder" else loaded
        )
        ours = OURS.get(self.kind, ())
        return None if options is None else {n: p for n, p in options.items() if n not in ours}


def check_plugins(config: Config) -> None:
    """Raise where a plug-in does not exist or does not take its options; nothing is built.

    Raises:
        ConfigError: an unknown option, or one of a wrong type, under its full key.
        PluginError: an unknown plug-in, or one that lacks an option.
    """
    uses = [(use, use.allowed()) for use in _uses(config)]
    known = KEYS + [f"{use.section}.{option}" for use, allowed in uses for option in allowed or ()]
    for use, allowed in uses:
        if allowed is None:
            continue
        for option, value in use.options.items():
            if option not in allowed:
                raise unknown_key(f"{use.section}.{option}", known)
            if wrong := registry.complaint(value, allowed[option].annotation):
                raise ConfigError(f"{use.section}.{option} {wrong}")
        registry.check_complete(use.kind, use.name, allowed, use.options)


def _uses(config: Config) -> Iterator[_Use]:
    for kind in PLUGIN_SECTIONS:
        yield _Use(kind, kind, *plugin(getattr(config, kind)))
    if config.validation is not None and held_out_fraction(config) is None:
        yield _Use("validation", "dataset", *plugin(_validation_section(config)))
    yield _Use("sampling", "sampler", config.sampling.sampler, {})
    evaluation = config.evaluation
    check_metrics(evaluation.metrics, evaluation.options)
    for name in evaluation.metrics:
        options = evaluation.options.get(name, {})
        yield _Use(f"evaluation.options.{name}", "evaluator", name, options)


def _create(kind: str, name: str, **options: Any) -> Any:
    """Create a plug-in, and warn of what it seems to be able to do but does not declare."""
    created = registry.create(kind, name, **options)
    for remark in undeclared(kind, created):
        warnings.warn(remark, SettingWarning, stacklevel=3)
    return created


def build_dataset(section: dict[str, Any]) -> Dataset:
    """Build the data set that a `dataset` or `validation` section asks for."""
    name, options = plugin(section)
    return _create("dataset", name, **options)


def build_training(config: Config) -> Dataset:
    """Build the training set, without what `validation.fraction` holds out of it.

    Raises:
        ConfigError: the set cannot be divided by the content of its pictures.
    """
    dataset = build_dataset(config.dataset)
    fraction = held_out_fraction(config)
    return dataset if fraction is None else _divided(dataset, fraction, config)[0]


def build_validation(config: Config) -> Dataset | None:
    """Build the validation set, its options those of the training set where it names no others.

    Raises:
        ConfigError: see `build_training`.
    """
    if config.validation is None:
        return None
    if (fraction := held_out_fraction(config)) is not None:
        return _divided(build_dataset(config.dataset), fraction, config)[1]
    return build_dataset(_validation_section(config))


def held_out_fraction(config: Config) -> float | None:
    """The fraction of the training set that is held out for validation; None where none is.

    Raises:
        ConfigError: it is not in (0, 1), or stands beside other keys.
    """
    given = config.validation or {}
    if "fraction" not in given:
        return None
    fraction = given["fraction"]
    if not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise ConfigError(f"validation.fraction must be in (0, 1), got {fraction!r}")
    if others := [key for key in given if key != "fraction"]:
        raise ConfigError(
            f"validation.fraction holds out a part of `dataset`: leave out validation.{others[0]}"
        )
    return float(fraction)


def _divided(dataset: Dataset, fraction: float, config: Config) -> tuple[Dataset, Dataset]:
    if isinstance(dataset, Divisible):
        return dataset.divided(fraction)
    name = config.dataset["name"]
    advice = "give validation a set of its own, by `path` or the like"
    if isinstance(dataset, Streaming):
        advice = f"{advice}; or take a set that is read at once, such as tar or huggingface"
    raise ConfigError(
        f"validation.fraction: the pictures of data set {name!r} are not known before they are "
        f"visited, so none can be held out by content; {advice}"
    )


def _validation_section(config: Config) -> dict[str, Any]:
    given = config.validation or {}
    same_plugin = given.get("name", config.dataset["name"]) == config.dataset["name"]
    return {**(config.dataset if same_plugin else {}), **given}


def build_text_encoder(
    section: dict[str, Any], captions: Sequence[str], rebuild: dict[str, Any] | None = None
) -> TextEncoder:
    """A new text encoder; one that learns its vocabulary learns it from the captions.

    Args:
        section: The config's `text_encoder`.
        captions: Of the training set.
        rebuild: What `config()` of an earlier encoder returned, to have its vocabulary again.
    """
    name, options = plugin(section)
    if rebuild is not None:
        return _create("text_encoder", name, **rebuild)
    loaded: Any = registry.load("text_encoder", name)
    registry.check_options("text_encoder", name, loaded.from_captions, options)
    return loaded.from_captions(captions, **options)


def build_network(section: dict[str, Any], text_encoder: TextEncoder, channels: int) -> nn.Module:
    """A new network that fits the text encoder and the pictures."""
    name, options = plugin(section)
    return _create(
        "network",
        name,
        text_dim=text_encoder.hidden_size,
        pooled_dim=text_encoder.pooled_size,
        in_channels=channels,
        **options,
    )


def build_schedule(config: Config) -> Schedule:
    """The noise levels."""
    diffusion = config.diffusion
    return make_schedule(
        diffusion.schedule,
        num_train_timesteps=diffusion.num_train_timesteps,
        zero_terminal_snr=diffusion.zero_terminal_snr,
        shift=diffusion.shift,
    )


def build_objective(
    config: Config,
    captions: Sequence[str],
    channels: int = 3,
    text_encoder_config: dict[str, Any] | None = None,
    start: tuple[nn.Module, nn.Module] | None = None,
) -> Any:
    """The objective with new components, on the CPU; the same ones for the same seed.

    Args:
        config: The run.
        captions: Of the training set, see `survey`.
        channels: Colour channels of the pictures.
        text_encoder_config: See `rebuild` of `build_text_encoder`.
        start: Network and text encoder whose weights the new ones begin with. An objective that
            takes a `teacher` gets a frozen copy of that model.

    Raises:
        ConfigError: there is no `start` for an objective that needs one.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        text_encoder: Any = build_text_encoder(config.text_encoder, captions, text_encoder_config)
        network = build_network(config.network, text_encoder, channels)
    if start is not None:
        network.load_state_dict(start[0].state_dict())
        text_encoder.load_state_dict(start[1].state_dict())
    denoiser = Denoiser(
        network, build_schedule(config), prediction_type=config.diffusion.prediction_type
    )
    name, options = plugin(config.objective)
    if takes_teacher(config):
        if start is None:
            raise ConfigError(
                f"objective {name!r} learns from the model that it starts from: set init_from to "
                "a model folder"
            )
        options["teacher"] = copy.deepcopy(denoiser).requires_grad_(False)
    return _create("objective", name, denoiser=denoiser, text_encoder=text_encoder, **options)


def takes_teacher(config: Config) -> bool:
    """Return whether the objective learns from the model that the run starts from."""
    name, _ = plugin(config.objective)
    return registry.takes(registry.load("objective", name), "teacher")


def prescribed_sampling(config: Config) -> dict[str, Any]:
    """Return the sampling settings that the objective's models are made for; empty for any.

    Of an objective that is not installed nothing is known, and no code is imported by its path:
    the config may be a stranger's.
    """
    name, options = plugin(config.objective)
    if name not in registry.names("objective"):
        return {}
    try:
        objective = registry.load("objective", name)
    except registry.BrokenPluginError:
        return {}
    if isinstance(objective, type) and issubclass(objective, PrescribesSampling):
        return objective.prescribed_sampling(options)
    return {}


def build_learner(config: Config, objective: Any, processes: Processes = ALONE) -> Learner:
    """Build the learner of an objective, which is on its device."""
    training = config.training
    names = (
        "learning_rate", "betas", "weight_decay", "muon_modules", "muon_learning_rate",
        "gradient_clip", "ema_max_decay", "ema_power", "precision", "strategy",
    )  # fmt: skip
    options = {name: getattr(training, name) for name in names}
    return Learner(objective, seed=config.seed, processes=processes, **options)


def decide_compilation(config: Config, device: torch.device) -> Decision:
    """Decide whether this process compiles what it trains, and why.

    Raises:
        ValueError: it has to and cannot.
    """
    training = config.training
    return decide(
        training.compile,
        device.type,
        num_pictures=training.num_pictures,
        max_seconds=None if training.max_minutes is None else 60 * training.max_minutes,
        obstacle=compile_obstacle(device),
    )


def build_evaluators(
    metrics: Sequence[str], options: dict[str, dict[str, Any]]
) -> dict[str, Evaluator]:
    """The named evaluators with their options.

    Raises:
        ConfigError: a metric that is named twice, or options for one that is not named.
    """
    check_metrics(metrics, options)
    return {m: _create("evaluator", m, **options.get(m, {})) for m in metrics}


def check_metrics(metrics: Sequence[str], options: Iterable[str]) -> None:
    """Raise ConfigError where a metric is named twice, or there are options for one not named."""
    if twice := [name for name in metrics if list(metrics).count(name) > 1]:
        raise ConfigError(f"the metric {twice[0]!r} is named twice")
    if unused := [name for name in options if name not in metrics]:
        hint = registry.suggest(unused[0], list(metrics))
        listed = ", ".join(metrics) or "none"
        raise ConfigError(
            f"options for {unused[0]!r}, which is not among the metrics{hint}: {listed}"
        )


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is the first of cuda, mps and cpu that is there.

    Raises:
        ConfigError: torch knows no such device, or the machine has none.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        device = torch.empty(0, device=name).device
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
        return device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"training.device {name!r} is not available: {reason}") from error
