"""Proves by random files that a config is read or refused in one line: no crash, no hang."""

import contextlib
import copy
import io
import math
from pathlib import Path

import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tinydiffusion import registry
from tinydiffusion.cli.main import main
from tinydiffusion.config import KEYS, Config, ConfigError, from_dict, load, save, to_dict
from tinydiffusion.run import train as train_command
from tinydiffusion.run.checks import check_config

FUZZ = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
VALID = [yaml.safe_load(file.read_text()) for file in Path(__file__).parents[1].glob("configs/*")]

names = st.sampled_from(
    sorted({part for key in KEYS for part in key.split(".")})
    + [name for kind in registry.KINDS for name in registry.builtin_names(kind)]
)
words = st.text(max_size=8) | names
numbers = st.integers() | st.floats() | st.sampled_from([0, -1, 1, 2**31, 2**63, 1e308, math.inf])
leaves = st.none() | st.booleans() | numbers | words
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4)
)


@st.composite
def near_valid(draw) -> dict:
    """A config of the repository of which one to three nodes were replaced, added or removed."""
    values = copy.deepcopy(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 3))):
        node = values
        while isinstance(node, dict) and node and draw(st.booleans()):
            inner = node[draw(st.sampled_from(sorted(node, key=str)))]
            if not isinstance(inner, dict):
                break
            node = inner
        key = draw(st.sampled_from(sorted(node, key=str)) | words) if node else draw(words)
        if draw(st.integers(0, 4)):
            node[key] = draw(trees)
        else:
            node.pop(key, None)
    return values


def check_reading(file: Path) -> None:
    """The file is refused in one line, or is a config that survives being saved."""
    config = outcome(lambda: load(file), ConfigError)
    if isinstance(config, Config):
        save(config, file)
        assert load(file) == config
        assert from_dict(to_dict(config)) == config


def outcome(call, refusal: type[Exception]):
    """What the call returns; None where it refuses, which it must in one line."""
    try:
        return call()
    except refusal as error:
        message = str(error)
    assert "\n" not in message
    assert 0 < len(message) < 2000
    return None


@FUZZ
@given(content=st.binary(max_size=200))
def test_any_bytes(content, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    check_reading(file)


@FUZZ
@example(content="training: {betas: [0, 1]}")
@example(content="dataset: {name: x, a: {<<: 1}}")
@given(
    content=st.lists(st.sampled_from("abnt:-?[]{},&*!|>'\"%@`#~ \n\t0123456789.e+_<=") | names).map(
        "".join
    )
)
def test_any_text_of_yamls_own_signs(content, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(content)
    check_reading(file)


@FUZZ
@given(values=trees | near_valid())
def test_any_values(values, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8", errors="replace")
    check_reading(file)


@FUZZ
@given(values=near_valid())
def test_whatever_is_read_is_checked_without_a_crash(values):
    """Values out of a model folder's JSON come this way: no YAML has sifted them."""
    outcome(lambda: check_config(from_dict(values)), ValueError)


@FUZZ
@given(values=near_valid(), flags=st.lists(st.tuples(st.sampled_from(KEYS), leaves), max_size=2))
def test_the_command_line_ends_in_one_line(values, flags, tmp_path, monkeypatch):
    def stop(_):
        raise ValueError("the settings are right")

    monkeypatch.setattr(train_command, "build_training", stop)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8", errors="replace")
    errors = io.StringIO()
    arguments = [f"--{key}={value}" for key, value in flags]
    with contextlib.redirect_stderr(errors):
        assert main(["train", "--config", str(file), "--dry-run", *arguments]) == 2
    *warned, line = errors.getvalue().split("\n")[:-1]
    assert line.startswith("error: ")
    assert all(each.startswith("warning: ") for each in warned)
