"""Proves that a wrong type or a senseless value of any setting ends in one line, exit code 2."""

import contextlib
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import yaml

from tinydiffusion import build, registry
from tinydiffusion.cli.main import main
from tinydiffusion.config import PLUGIN_SECTIONS, Config, ConfigError, from_dict, load
from tinydiffusion.registry import type_name

TINY = {
    "dataset": {"name": "scenes", "size": 16, "num_scenes": 8},
    "text_encoder": {"name": "clip", "width": 32, "layers": 1, "heads": 2},
    "network": {"name": "unet", "channels": [32, 32], "layers_per_block": 1},
    "training": {"num_pictures": 8, "batch_size": 4, "device": "cpu"},
    "sampling": {"steps": 2, "num_prompts": 2},
    "evaluation": {"metrics": ["pixel_fd"], "reference": "train"},
}
NEEDED = {"folder": {"path": "x"}, "huggingface": {"path": "x"}, "tar": {"path": "x"}}
VALUES = [
    None, "text", "1e-4", "3", "true", ".nan", 7, -7, 1.5, math.nan, math.inf, -math.inf, True,
    [], [1], [1.5], [True], ["a"], [None], [[]], [math.nan, 1], {}, {"a": 1},
    {"a": {"b": math.inf}}, 2**63, 10**400, [2**63],
]  # fmt: skip


def is_number(value) -> bool:
    return type(value) in (int, float) and abs(value) < 2**63


def is_list_of(right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: type(value) is list and all(map(right, value))


SIMPLE: dict[str, Callable[[Any], bool]] = {
    "None": lambda value: value is None,
    "int": lambda value: type(value) is int and abs(value) < 2**63,
    "float": is_number,
    "bool": lambda value: type(value) is bool,
    "str": lambda value: type(value) is str,
    "Path": lambda value: type(value) is str,
    "list[str]": is_list_of(lambda value: type(value) is str),
    "list[dict[str, Any]]": is_list_of(lambda value: value in ({}, {"a": 1})),
    "list[int]": is_list_of(lambda value: type(value) is int and abs(value) < 2**63),
    "list[float, float]": lambda value: is_list_of(is_number)(value) and len(value) == 2,
    "dict[str, dict[str, Any]]": lambda value: value == {},
    "dict[str, Any]": lambda value: value in ({}, {"a": 1}),
}
"""Type as the help names it -> whether one of `VALUES` has it; written without `registry.fits`."""


def has_type(value, name: str) -> bool:
    return any(
        SIMPLE.get(part, lambda value, p=part: value == p)(value) for part in name.split(" | ")
    )


def settings() -> Iterator[tuple[str, str, dict]]:
    """Key, type and the rest of a config, for every key and every option of a built-in plug-in."""
    for section in fields(Config):
        if section.name in (*PLUGIN_SECTIONS, "validation"):
            continue
        if is_dataclass(section.type):
            for f in fields(section.type):
                yield f"{section.name}.{f.name}", type_name(f.type), {}
        else:
            yield section.name, type_name(section.type), {}
    for kind in PLUGIN_SECTIONS:
        for name in registry.builtin_names(kind):
            rest = {kind: {"name": name, **NEEDED.get(name, {})}}
            for option, parameter in (build._Use(kind, kind, name, {}).allowed() or {}).items():
                yield f"{kind}.{option}", type_name(parameter.annotation), rest
    yield "validation.size", "int", {"validation": {}}
    for name in registry.builtin_names("evaluator"):
        key = f"evaluation.options.{name}"
        rest = {"evaluation": {"metrics": [name], "reference": "train", "options": {name: {}}}}
        for option, parameter in (build._Use(key, "evaluator", name, {}).allowed() or {}).items():
            yield f"{key}.{option}", type_name(parameter.annotation), rest


SETTINGS = list(settings())


def put(values: dict, key: str, value) -> dict:
    """A copy of the nested values with one more at the dotted key."""
    section, _, rest = key.partition(".")
    return {**values, section: put(values.get(section, {}), rest, value) if rest else value}


# ---- types -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "type_", "rest"), SETTINGS, ids=lambda x: x if isinstance(x, str) else ""
)
def test_a_wrong_type_names_the_key_and_what_it_must_be(key, type_, rest):
    wrong = [value for value in VALUES if not has_type(value, type_)]
    assert len(wrong) > len(VALUES) / 2
    for value in wrong:
        with pytest.raises(ConfigError) as caught:
            build.check_plugins(from_dict(put(rest, key, value)))
        message = str(caught.value)
        assert message.startswith((f"{key} must be ", f"{key}.a"))
        assert " must be " in message
        assert "\n" not in message
        assert len(message) < 400


@pytest.mark.parametrize("value", ["1e999", "-1e999", "[1e999, 0.5]"])
@pytest.mark.parametrize("key", ["training.betas", "training.learning_rate", "objective.gamma"])
def test_numbers_of_a_file_are_finite(key, value):
    with pytest.raises(ConfigError, match=f"^{key} must be "):
        build.check_plugins(load(None, [f"--{key}={value}"]))


def test_options_of_any_type_hold_finite_numbers_too():
    sampler = registry.load("sampler", "diffusers")
    options = {"scheduler": "DDIMScheduler", "scheduler_options": {"a": [{"b": math.inf}]}}
    with pytest.raises(registry.PluginError, match="must be finite and within"):
        registry.check_options("sampler", "diffusers", sampler, options)


# ---- values ----------------------------------------------------------------------------------


HUGE = (10**9, 2**62)
COUNT = (0, -1, *HUGE)
SENSELESS = {
    "seed": (-1, 2**63 - 1),
    "diffusion.num_train_timesteps": (1, *COUNT),
    "diffusion.shift": (0, -1, 1e-300, 1e300, *HUGE),
    "training.num_pictures": (0, -1, 2**62),
    "training.max_minutes": (0, -1, -1e-300),
    "training.batch_size": COUNT,
    "training.accumulation": (3, *COUNT),
    "training.learning_rate": (0, -1, -1e-300),
    "training.betas": ([1.0, 1.0], [-1.0, 0.5], [0.5, 2**60]),
    "training.weight_decay": (-1,),
    "training.muon_modules": (["encoder"], ["objective"]),
    "training.muon_learning_rate": (0, -1),
    "training.warmup_pictures": (-1, 2**62),
    "training.decay_fraction": (-1e-300, 1.5, *HUGE),
    "training.gradient_clip": (0, -1),
    "training.ema_max_decay": (-1e-300, 1, *HUGE),
    "training.ema_power": (0, -1, *HUGE),
    "training.device": ("", "gpu", "cuda:99", "meta", "a\0b"),
    "training.num_workers": (-1, *HUGE),
    "training.checkpoint_every": (0, -1, 2**62),
    "training.keep_checkpoints": COUNT,
    "training.disk_wait_minutes": (-1,),
    "training.hang_minutes": (0, -1),
    "training.log_every": (0, -1, 2**62),
    "sampling.sampler": ("", "eulr", "diffusers", "no:such", "..:x", "a\0b:c"),
    "sampling.steps": COUNT,
    "sampling.spacing": ("", "even"),
    "sampling.guidance_scale": (1e300, -1e9),
    "sampling.guidance_rescale": (-0.1, 1.1),
    "sampling.guidance_interval": ([3, 0.3], [1, 1], [-1, 1], [0, 2**62]),
    "sampling.every": (0, -1, 2**62),
    "sampling.prompts": (["x"] * 2000,),
    "sampling.num_prompts": COUNT,
    "evaluation.metrics": (["pixel_fd", "pixel_fd"], ["fidd"], [""]),
    "evaluation.num_images": COUNT,
    "evaluation.every": (0, -1),
    "evaluation.every_num_images": (1, *COUNT),
    "evaluation.keep_best": ("", "pixel_fd"),  # without `every`
    "evaluation.options": ({"fid": {}}, {"pixel_fd": {"size": 0}}, {"pixel_fd": {"size": 2**62}}),
    "dataset.size": (1, 15, *COUNT),
    "dataset.num_scenes": COUNT,
    "dataset.seed": (-1,),
    "dataset.split": ("", "test"),
    "dataset.categories": ([], ["x"]),
    "text_encoder.width": (31, *COUNT),
    "text_encoder.layers": COUNT,
    "text_encoder.heads": (3, *COUNT),
    "text_encoder.max_length": (2, 78, *COUNT),
    "text_encoder.vocab_size": (0, -1, 514),
    "text_encoder.conv_size": (17, *COUNT),
    "network.channels": ([], [0], [-32], [32, 2**62], [32] * 17, [32, 33]),
    "network.layers_per_block": COUNT,
    "network.attention_levels": ([2], [-1]),
    "network.head_dim": (3, *COUNT),
    "network.time_embedding_dim": (2, *COUNT),
    "network.patch_size": (3, *COUNT),
    "network.preview_size": COUNT,
    "network.preview_channels": COUNT,
    "network.dropout": (1, -0.1, *HUGE),
    "objective.caption_dropout_prob": (0, -0.1, 1.1, *HUGE),  # 0: with guidance on
    "objective.weighting": ("", "min_snt"),
    "objective.gamma": (0, -1),
    "objective.sigma_data": (0, -1, 1e-300, *HUGE),
    "objective.time_density": ("", "lognormal"),
    "objective.time_mean": (-1e9, *HUGE),
    "objective.time_std": (0, -1, *HUGE),
    "objective.preview_weight": (-1, *HUGE),
    "objective.denoise_every": (65, *COUNT),
    "objective.noise_candidates": (65, *COUNT),
}


@pytest.mark.parametrize(("key", "values"), SENSELESS.items(), ids=SENSELESS)
def test_a_senseless_value_ends_in_one_line_and_no_folder(key, values, tmp_path):
    file = tmp_path / "run.yaml"
    for value in values:
        file.write_text(yaml.safe_dump(put(TINY, key, value)))
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            assert main(["train", "--config", str(file), "--run-dir", str(tmp_path / "run")]) == 2
        *warned, line = errors.getvalue().splitlines()
        assert line.startswith("error: ")
        assert all(each.startswith("warning: ") for each in warned)
        assert len(line) < 600
        assert not (tmp_path / "run").exists()


def test_the_settings_that_the_others_are_changed_in_are_right(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(TINY))
    assert main(["train", "--config", str(file), "--dry-run"]) == 0


def test_every_number_has_a_senseless_value_that_is_refused():
    """Of what `TINY` is made of; an option that is new gets its row above."""
    sections = {"objective": {"name": "denoising"}, **TINY}
    numbers = {
        key
        for key, type_, rest in SETTINGS
        if {"int", "float"} & set(type_.split(" | "))
        and all(
            sections[kind]["name"] == rest[kind]["name"] for kind in rest if kind in PLUGIN_SECTIONS
        )
        and not key.startswith(("evaluation.options.", "validation."))
    }
    assert numbers - set(SENSELESS) == set()
