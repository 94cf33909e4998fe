"""Tables of settings that have no effect with others, which are reported to the user.

A certain mistake is refused, as nothing is lost by starting again; the rest is a warning.
"""

import argparse
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from tinydiffusion.config import (
    Config,
    DiffusionConfig,
    EvaluationConfig,
    SamplingConfig,
    TrainingConfig,
)


@dataclass(frozen=True)
class Rule:
    """A condition under which a setting has no effect, and a remedy."""

    setting: str
    idle: Callable[[Any], bool]
    reason: str
    is_mistake: bool = False

    def __str__(self) -> str:
        return f"{self.setting} has no effect: {self.reason}"


def idle(rules: Iterable[Rule], subject: Any) -> list[Rule]:
    """Return the rules of the settings that have no effect in a subject."""
    return [rule for rule in rules if rule.idle(subject)]


# ---- sampling --------------------------------------------------------------------------------


class Guidance(NamedTuple):
    """The settings of a sampling call that concern guidance."""

    sampling: SamplingConfig
    has_negative_prompt: bool
    covers_a_step: bool  # whether a noise level of the steps lies in the guidance interval

    @property
    def is_on(self) -> bool:
        """Whether guidance alters any picture."""
        return self.sampling.guidance_scale != 1 and self.covers_a_step


UNGUIDED = "guidance_scale 1 is no guidance; take a scale above 1, or leave it out"
SAMPLING = (
    Rule(
        "guidance_scale",
        lambda g: g.sampling.guidance_scale != 1 and not g.covers_a_step,
        "no noise level of these steps lies in guidance_interval; widen it, or leave it out",
    ),
    Rule(
        "the negative prompt",
        lambda g: g.has_negative_prompt and not g.is_on,
        "it is what guidance moves away from, and there is none (guidance_scale 1, or an interval "
        "without a step); take a scale above 1, or leave it out",
    ),
    Rule(
        "guidance_rescale",
        lambda g: g.sampling.guidance_rescale != 0 and g.sampling.guidance_scale == 1,
        UNGUIDED,
    ),
    Rule(
        "guidance_interval",
        lambda g: g.sampling.guidance_interval is not None and g.sampling.guidance_scale == 1,
        UNGUIDED,
    ),
)
"""Rules of a `Guidance`."""


# ---- flags -----------------------------------------------------------------------------------


class Flags(NamedTuple):
    """The flags of a command line."""

    given: argparse.Namespace
    parser: argparse.ArgumentParser

    def has(self, name: str) -> bool:
        """Return whether a flag has another value than its default."""
        return getattr(self.given, name) != self.parser.get_default(name)


def _needs(flag: str, needed: str, *, is_mistake: bool = True) -> Rule:
    """Make the rule of a flag that has no effect without another one."""
    name, other = flag.replace("-", "_"), needed.replace("-", "_")
    reason = f"it goes with --{needed}; add that, or leave it out"
    return Rule(f"--{flag}", lambda f: f.has(name) and not f.has(other), reason, is_mistake)


def _excluded(flag: str, by: str, *, is_mistake: bool = True) -> Rule:
    """Make the rule of a flag that has no effect with another one."""
    name, other = flag.replace("-", "_"), by.replace("-", "_")
    reason = f"--{by} does not ask for it; leave one of them out"
    return Rule(f"--{flag}", lambda f: f.has(name) and f.has(other), reason, is_mistake)


FLAGS: dict[str, tuple[Rule, ...]] = {
    "train": (
        _needs("devices", "dry-run"),
        _needs("json", "dry-run"),
        _excluded("resume", "dry-run", is_mistake=False),
        _excluded("allow-change", "dry-run", is_mistake=False),
    ),
    "evaluate": (
        _needs("samples-per-prompt", "prompts"),
        _needs("save-every", "state"),
        Rule(
            "--assume-extractor",
            lambda f: f.has("assume_extractor") and not str(f.given.data).endswith(".npz"),
            "it says what the statistics of --data FILE.npz were made with; leave it out",
            is_mistake=True,
        ),
    ),
    "pack": (
        *(_excluded(flag, "check") for flag in ("config", "size", "format", "shard-size")),
        _excluded("caption-column", "check"),
        _excluded("workers", "check", is_mistake=False),
    ),
}
"""Command -> rules of its `Flags`."""


# ---- evaluate, once it is known what its target is -------------------------------------------


class Evaluated(NamedTuple):
    """The request to `evaluate`, the kind of its target and the sources it needs."""

    request: Any  # see evaluation/request.py
    is_model: bool
    needs: frozenset[str]  # sources that the metrics need

    @property
    def makes_prompts_of_data(self) -> bool:
        """Whether the captions of the reference are the model's prompts."""
        return self.is_model and not self.request.prompts


NOT_MADE = "the target is a folder of pictures, of which none is made; leave it out"
EVALUATE = (
    Rule("--seed", lambda e: not e.is_model and e.request.seed != 0, NOT_MADE),
    Rule("--precision", lambda e: not e.is_model and e.request.precision != "auto", NOT_MADE),
    Rule("--device", lambda e: not e.is_model and e.request.device != "auto", NOT_MADE),
    Rule("--trust-plugins", lambda e: not e.is_model and e.request.trust_plugins, NOT_MADE),
    Rule(
        "--data",
        lambda e: (
            e.request.data is not None
            and "reference" not in e.needs
            and not e.makes_prompts_of_data
        ),
        "none of the metrics compares with a reference; leave it out",
    ),
    Rule(
        "--train",
        lambda e: e.request.train is not None and "train" not in e.needs,
        "none of the metrics looks at training pictures; leave it out",
    ),
    Rule(
        "--num-images beyond the prompts of the file",
        lambda e: e.request.prompts and (e.request.num_images or 0) > len(e.request.prompts),
        "a prompt has --samples-per-prompt pictures; raise that",
    ),
)
"""Rules of an `Evaluated`."""


# ---- config ----------------------------------------------------------------------------------


def _is_set(config: Config, key: str) -> bool:
    """Return whether a key such as "training.betas" has another value than its default."""
    section, name = key.split(".")
    defaults = {
        "training": TrainingConfig(), "sampling": SamplingConfig(),
        "evaluation": EvaluationConfig(), "diffusion": DiffusionConfig(),
    }  # fmt: skip
    return getattr(getattr(config, section), name) != getattr(defaults[section], name)


def _key(key: str, idle: Callable[[Config], bool], reason: str) -> Rule:
    return Rule(key, lambda config: _is_set(config, key) and idle(config), reason)


CONFIG = (
    _key(
        "training.muon_learning_rate",
        lambda c: not c.training.muon_modules,
        "no module is Muon's; name some in training.muon_modules",
    ),
    _key(
        "training.strategy",
        lambda _: os.environ.get("WORLD_SIZE", "1") == "1",
        "there is one process; start several with torchrun",
    ),
    _key(
        "training.ema_power",
        lambda c: c.training.ema_max_decay == 0,
        "training.ema_max_decay is 0, no weights are averaged",
    ),
    _key(
        "diffusion.zero_terminal_snr",
        lambda c: c.diffusion.schedule == "flow",
        "the schedule flow always ends in pure noise",
    ),
    _key(
        "sampling.num_prompts",
        lambda c: bool(c.sampling.prompts),
        "sampling.prompts names the prompts",
    ),
    _key(
        "evaluation.every_num_images",
        lambda c: c.evaluation.every is None,
        "nothing is measured on the way; set evaluation.every",
    ),
    _key(
        "evaluation.num_images",
        lambda c: not c.evaluation.metrics,
        "nothing is measured; name evaluation.metrics",
    ),
)
"""Rules of a `Config`; `SAMPLING` has more."""
