"""Proves of every rule in the tables that it is met where a setting is idle, and only there."""

from types import SimpleNamespace

import pytest

from tinydiffusion import config
from tinydiffusion.cli.arguments import check_flags
from tinydiffusion.cli.main import parsers
from tinydiffusion.config import SamplingConfig
from tinydiffusion.runtime.errors import SettingWarning, UsageError
from tinydiffusion.without_effect import (
    CONFIG,
    EVALUATE,
    FLAGS,
    SAMPLING,
    Evaluated,
    Guidance,
    idle,
)


def settings_of(rules) -> list[str]:
    return [rule.setting for rule in rules]


def guidance(*, negative: bool = False, covers: bool = True, **settings) -> Guidance:
    return Guidance(SamplingConfig(**settings), negative, covers)


SAMPLING_CASES = {
    "guidance_scale": (guidance(guidance_interval=(0.1, 0.2), covers=False), guidance()),
    "the negative prompt": (
        guidance(negative=True, guidance_scale=1.0),
        guidance(negative=True, guidance_scale=0.0),
    ),
    "guidance_rescale": (
        guidance(guidance_rescale=0.5, guidance_scale=1.0),
        guidance(guidance_rescale=0.5),
    ),
    "guidance_interval": (
        guidance(guidance_interval=(1.0, 2.0), guidance_scale=1.0),
        guidance(guidance_interval=(1.0, 2.0)),
    ),
}
CONFIG_CASES = {
    "training.muon_learning_rate": (
        {"training.muon_learning_rate": 0.1},
        {"training.muon_learning_rate": 0.1, "training.muon_modules": "[denoiser]"},
    ),
    "training.strategy": ({"training.strategy": "fsdp"}, {}),
    "training.ema_power": (
        {"training.ema_power": 0.5, "training.ema_max_decay": 0},
        {"training.ema_power": 0.5},
    ),
    "diffusion.zero_terminal_snr": (
        {"diffusion.zero_terminal_snr": True},
        {"diffusion.zero_terminal_snr": True, "diffusion.schedule": "cosine"},
    ),
    "sampling.num_prompts": (
        {"sampling.num_prompts": 4, "sampling.prompts": "[a]"},
        {"sampling.num_prompts": 4},
    ),
    "evaluation.every_num_images": (
        {"evaluation.every_num_images": 4},
        {"evaluation.every_num_images": 4, "evaluation.every": 5},
    ),
    "evaluation.num_images": (
        {"evaluation.num_images": 4},
        {"evaluation.num_images": 4, "evaluation.metrics": "[vendi]"},
    ),
}
DRY, STATE = "--dry-run", "--state s"
EVALUATE_LINE = "x --metrics fid "
FLAG_CASES = {
    "train": {
        "--devices": ("--devices 3", f"--devices 3 {DRY}"),
        "--json": ("--json f.json", f"--json f.json {DRY}"),
        "--resume": (f"--resume c {DRY}", "--resume c"),
        "--allow-change": (f"--allow-change data {DRY}", "--allow-change data"),
    },
    "evaluate": {
        "--samples-per-prompt": (
            f"{EVALUATE_LINE} --samples-per-prompt 2",
            f"{EVALUATE_LINE} --samples-per-prompt 2 --prompts p.txt",
        ),
        "--save-every": (
            f"{EVALUATE_LINE} --save-every 2", f"{EVALUATE_LINE} --save-every 2 {STATE}",
        ),
        "--assume-extractor": (
            f"{EVALUATE_LINE} --assume-extractor e --data folder",
            f"{EVALUATE_LINE} --assume-extractor e --data s.npz",
        ),
    },
    "pack": {
        flag: (f"--check a {flag} {value}", f"a {flag} {value}")
        for flag, value in (
            ("--config", "c"), ("--size", "3"), ("--format", "jpg"), ("--shard-size", "3"),
            ("--caption-column", "c"), ("--workers", "3"),
        )
    },
}  # fmt: skip


def evaluated(*, is_model: bool = True, needs: str = "", **given) -> Evaluated:
    defaults = {
        "seed": 0, "precision": "auto", "device": "auto", "trust_plugins": False, "data": None,
        "train": None, "prompts": [], "num_images": None,
    }  # fmt: skip
    request = SimpleNamespace(**{**defaults, **given})
    return Evaluated(request, is_model, frozenset(needs.split()))


EVALUATE_CASES = {
    "--seed": (evaluated(is_model=False, seed=3), evaluated(seed=3)),
    "--precision": (
        evaluated(is_model=False, precision="int8"), evaluated(precision="int8"),
    ),
    "--device": (evaluated(is_model=False, device="cpu"), evaluated(device="cpu")),
    "--trust-plugins": (
        evaluated(is_model=False, trust_plugins=True), evaluated(trust_plugins=True),
    ),
    "--data": (evaluated(data="d", prompts=["a"]), evaluated(data="d")),
    "--train": (evaluated(train="d"), evaluated(train="d", needs="train generated")),
    "--num-images beyond the prompts of the file": (
        evaluated(num_images=3, prompts=["a", "b"]), evaluated(num_images=2, prompts=["a", "b"]),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "cases"),
    [(SAMPLING, SAMPLING_CASES), (CONFIG, CONFIG_CASES), (EVALUATE, EVALUATE_CASES)]
    + [(FLAGS[command], FLAG_CASES[command]) for command in FLAGS],
)
def test_every_rule_has_a_case(rules, cases):
    assert settings_of(rules) == list(cases)


@pytest.mark.parametrize(
    ("rules", "cases"), [(SAMPLING, SAMPLING_CASES), (EVALUATE, EVALUATE_CASES)]
)
def test_a_setting_is_named_where_it_does_nothing_and_only_there(rules, cases):
    for setting, (nothing, something) in cases.items():
        assert settings_of(idle(rules, nothing)) == [setting]
        assert idle(rules, something) == []


@pytest.mark.parametrize("key", CONFIG_CASES)
def test_a_key_that_was_set_is_named_where_it_does_nothing(key):
    nothing, something = (
        config.load(None, [f"--{name}={value}" for name, value in overrides.items()])
        for overrides in CONFIG_CASES[key]
    )
    assert settings_of(idle(CONFIG, nothing)) == [key]
    assert idle(CONFIG, something) == []


def test_the_default_config_sets_nothing_idle():
    assert idle(CONFIG, config.Config()) == []


def test_several_processes_make_the_strategy_count(monkeypatch):
    settings = config.load(None, ["--training.strategy", "fsdp"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert idle(CONFIG, settings) == []


@pytest.mark.parametrize(
    ("command", "flag"), [(command, flag) for command in FLAG_CASES for flag in FLAG_CASES[command]]
)
def test_a_flag_is_refused_or_warned_of_where_it_does_nothing(command, flag):
    parser = parsers()[1][command]
    nothing, something = (parser.parse_args(line.split()) for line in FLAG_CASES[command][flag])
    (rule,) = [rule for rule in FLAGS[command] if rule.setting == flag]
    if rule.is_mistake:
        with pytest.raises(UsageError, match=f"{flag} has no effect: "):
            check_flags(parser, nothing)
    else:
        with pytest.warns(SettingWarning, match=f"{flag} has no effect: "):
            check_flags(parser, nothing)
    check_flags(parser, something)
