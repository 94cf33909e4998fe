"""Proves that settings which a short run leaves without effect are said, with what comes of it."""

import re
from dataclasses import replace

import pytest

from tinydiffusion import config as config_file
from tinydiffusion.cli.main import main
from tinydiffusion.config import Config, EvaluationConfig, SamplingConfig, TrainingConfig
from tinydiffusion.planning.short_runs import (
    checkpoint_remark,
    short_run_remarks,
    warm_up_remark,
)
from tinydiffusion.training.schedule import learning_rate_factor


@pytest.mark.parametrize(
    ("num_pictures", "warm_up", "decay", "words"),
    [
        (1000, 10_000, 0.3, "is longer than the run of 1000"),
        (1000, 1001, 0.0, "is longer than the run of 1000"),
        (1000, 800, 0.3, "lasts into the decay, from picture 700 of 1000 on"),
        (10, 100, 1.0, "is longer than the run of 10"),
    ],
)
def test_the_highest_learning_rate_is_told(num_pictures, warm_up, decay, words):
    training = TrainingConfig(
        num_pictures=num_pictures, warmup_pictures=warm_up, decay_fraction=decay
    )
    remark = warm_up_remark(training, num_pictures)
    assert remark is not None
    assert words in remark
    highest = max(
        learning_rate_factor(
            seen, seen / num_pictures, warmup_pictures=warm_up, decay_fraction=decay
        )
        for seen in range(num_pictures + 1)
    )
    told = float(re.search(r"reaches (\S+) of 0\.001", remark)[1])
    assert told == pytest.approx(1e-3 * highest, rel=0.05)


@pytest.mark.parametrize(
    ("num_pictures", "warm_up", "decay"),
    [(1000, 700, 0.3), (1000, 0, 1.0), (1000, 1000, 0.0), (14_286, 10_000, 0.3)],
)
def test_a_warm_up_that_is_over_in_time_is_not_worth_a_word(num_pictures, warm_up, decay):
    training = TrainingConfig(warmup_pictures=warm_up, decay_fraction=decay)
    assert warm_up_remark(training, num_pictures) is None


@pytest.mark.parametrize("name", ["quickstart", "emoji", "distill", "smoke"])
def test_our_own_configs_have_no_such_setting(name):
    assert short_run_remarks(config_file.load(f"configs/{name}.yaml")) == []


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ("training", "checkpoint_every"),
        ("training", "log_every"),
        ("sampling", "every"),
        ("evaluation", "every"),
    ],
)
@pytest.mark.parametrize("every", [99, 100, 101])
def test_an_interval_that_was_set_longer_than_the_run_is_told(section, name, every):
    config = Config(training=TrainingConfig(num_pictures=100, warmup_pictures=0))
    config = replace(config, **{section: replace(getattr(config, section), **{name: every})})
    remarks = short_run_remarks(config)
    assert len(remarks) == (every > 100)
    assert all(r.startswith(f"{section}.{name} 101 is longer than the run of 100") for r in remarks)


def test_defaults_are_not_told():
    config = Config(
        training=TrainingConfig(num_pictures=100, warmup_pictures=0),
        sampling=SamplingConfig(),
        evaluation=EvaluationConfig(),
    )
    assert short_run_remarks(config) == []


@pytest.mark.parametrize(
    ("every", "seconds", "told"), [(20, 700.0, True), (20, 500.0, False), (9, 700.0, False)]
)
def test_a_long_run_without_a_checkpoint_on_its_way_is_told(every, seconds, told):
    remark = checkpoint_remark(TrainingConfig(checkpoint_every=every), 10, seconds)
    assert (remark is not None) == told


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_the_run_and_the_dry_run_say_it(tiny, tmp_path, capsys, flags):
    command = ["train", "--config", tiny, "--run-dir", str(tmp_path / "run"), *flags]
    short = ["--training.num_pictures", "8", "--evaluation.metrics", "[]"]
    assert main([*command, *short, "--training.warmup_pictures", "10000"]) == 0
    assert "warning: the warm-up of 10000 pictures is longer" in capsys.readouterr().err


def test_a_run_that_its_time_ends_in_the_warm_up_says_it(tiny, tmp_path, capsys):
    flags = ["--training.num_pictures", "1000000", "--training.warmup_pictures", "500000"]
    flags += ["--training.max_minutes", "0.05", "--evaluation.metrics", "[]"]
    command = ["train", "--config", tiny, "--run-dir", str(tmp_path / "run"), *flags]
    for more in (["--dry-run"], []):
        assert main([*command, *more]) == 0
        assert "warning: the warm-up of 500000 pictures is longer" in capsys.readouterr().err
