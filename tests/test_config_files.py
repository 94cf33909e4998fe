"""Proves that a config file is read strictly, and that what is wrong is named with its place."""

import os
import time

import pytest

from tinydiffusion import config
from tinydiffusion.config import Config, ConfigError, DiffusionConfig, load, save
from tinydiffusion.runtime import durable, strict_yaml


def complaint(call) -> str:
    """The message of the ConfigError, which has one line."""
    with pytest.raises(ConfigError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert 0 < len(message) < 400
    return message


# ---- what is refused, and where --------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: 1\nseed: 2\n", ":2:1: the key 'seed' is given twice"),
        (b"training:\n  betas: [0, 1]\n  betas: [0, 1]", ":3:3: the key 'betas' is given twice"),
        (b"dataset: {name: a, 'name': b}", ":1:20: the key 'name' is given twice"),
        (b"dataset: &a {name: a}\n", ":1:10: anchors (&) and aliases (*) are not read"),
        (b"dataset: {name: *a}\n", ":1:17: anchors (&) and aliases (*) are not read"),
        (b"training:\n  <<: {seed: 1}\n", ":2:3: merge keys (<<) are not read"),
        (b"seed: !!int 3\n", ":1:7: tags (!) are not read"),
        (b"seed: ! 3\n", ":1:7: tags (!) are not read"),
        (b"!!python/object/apply:os.getcwd []", ":1:1: tags (!) are not read"),
        (b"training: {batch_size: 3", ":1:25: while parsing a flow mapping, expected ',' or '}'"),
        (b"seed: 1\ntraining:\n\tbatch_size: 3\n", ":3:1: while scanning for the next token"),
        (b"seed: 1\n--- \nseed: 2\n", ":2:1: expected a single document in the stream"),
        (b"3: 4\n", ":1:1: the key 3 is not a text; quote it"),
        (b"~: 4\n", ":1:1: the key None is not a text; quote it"),
        (b"? [a]\n: 4\n", ":1:3: the key ['a'] is not a text; quote it"),
        (b"seed: 1\nx: \xe9\n", ":2:4: this is not UTF-8; save the file as UTF-8"),
        ("seed: 1\n".encode("utf-16"), ":1:1: this is not UTF-8"),
        (b"\xff\xff\x00", ":1:1: this is not UTF-8"),
        (b"seed: 1\nx: a\0b\n", ":2:5: the character '\\x00' is refused"),
        (b"seed: 1\nx: a\x1bb\n", ":2:5: the character '\\x1b' is refused"),
        (b"x: " + b"9" * 5000, ":1:4: '99999999999999999999'... is no number to count with"),
        (b"x: " + b"[" * 100_000, ":1:23: settings have at most 20 levels"),
        (b"- " * 100_000, ":1:41: settings have at most 20 levels"),
        (b"x: [" + b"a," * 30_000, ":1:39999: settings have at most 20 levels and 20000 values"),
        (b"#" * (2**20 + 1), ": settings are no longer than 1048576 bytes"),
        (b"just text", " must hold keys and values such as `seed: 0`, got 'just text'"),
        (b"- a\n- b\n", " must hold keys and values"),
        (b"'" + b"x" * 10_000 + b"'", " must hold keys and values"),
    ],
)
def test_a_file_that_is_no_config_is_named_with_the_place(tmp_path, content, message):
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    assert complaint(lambda: load(file)).startswith(f"{file}{message}")


@pytest.mark.parametrize(
    "content",
    [b"a: b\n" * 200_000, b"[" + b"a," * 500_000, b"'" + b"a b\n" * 250_000 + b"'", b"\n" * 10**6],
)
def test_a_file_of_a_megabyte_takes_seconds_at_most(content):
    begin = time.perf_counter()
    try:
        strict_yaml.read(content, "run.yaml")
    except strict_yaml.YamlError:
        assert content[:1] in b"a["
    assert time.perf_counter() - begin < 10


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbfseed: 5\n", b"seed: 5\r\n", b"seed: 5 # \xc3\xa9"]
)
def test_byte_order_mark_line_ends_and_comments_are_no_mistakes(tmp_path, content):
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    assert load(file) == Config(seed=5)


# ---- words -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"), ("off", "off"), ("2024-01-01", "2024-01-01"), ("1:30", "1:30"),
        (".nan", ".nan"), ("-.inf", "-.inf"), ("0x10", "0x10"), ("=", "="), ("1e", "1e"),
        ("\u0663e\u0663", "\u0663e\u0663"),  # digits, but not ours
        ("True", True), ("false", False), ("~", None), ("", None), ("null", None),
        ("1_000_000", 1_000_000), ("-3", -3), ("+3", 3), ("1e3", 1000.0), (".5", 0.5), ("1.", 1.0),
        ("'3'", "3"), ('"~"', "~"),
    ],
)  # fmt: skip
def test_plain_words_are_read_as_yaml_1_2_does(text, value):
    read = strict_yaml.read(text, "x")
    assert read == value
    assert type(read) is type(value)


# ---- paths -----------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path):
    file = tmp_path / "nope.yaml"
    assert complaint(lambda: load(file)) == f"there is no config file {file}"
    assert "there is no config file" in complaint(lambda: load(f"{file}/x"))


def test_a_folder_is_named(tmp_path):
    message = f"the config file {tmp_path} is a folder; give a YAML file"
    assert complaint(lambda: load(tmp_path)) == message


def test_a_name_that_is_no_line_is_shown_in_one():
    assert complaint(lambda: load("a\nb.yaml")) == r"there is no config file 'a\nb.yaml'"


def test_a_name_that_the_disk_refuses_is_told():
    name = "x" * 300
    assert (
        complaint(lambda: load(name)) == f"cannot read the config file {name}: File name too long"
    )


def test_an_unreadable_file_is_told(tmp_path, monkeypatch):
    file = tmp_path / "run.yaml"
    file.write_text("seed: 1")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(file), "open", refuse)
    message = f"cannot read the config file {file}: Permission denied"
    assert complaint(lambda: load(file)) == message


def test_a_pipe_is_no_file_to_wait_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "there is no config file" in complaint(lambda: load(tmp_path / "pipe"))


# ---- writing ---------------------------------------------------------------------------------


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "config.yaml"
    save(Config(seed=1), file)
    monkeypatch.setattr(durable.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(Config(seed=2), file)
    assert load(file) == Config(seed=1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.yaml"]


def test_a_list_in_two_places_is_written_twice(tmp_path):
    shared = [1, 2]
    settings = Config(network={"name": "unet", "channels": shared, "attention_levels": shared})
    save(settings, tmp_path / "run.yaml")
    assert load(tmp_path / "run.yaml") == settings


def test_nothing_of_the_environment_is_saved(tmp_path, monkeypatch):
    monkeypatch.setenv("API_TOKEN", "canary-4711")
    save(Config(diffusion=DiffusionConfig(schedule="$API_TOKEN")), tmp_path / "run.yaml")
    assert "canary" not in (tmp_path / "run.yaml").read_text()
    assert load(tmp_path / "run.yaml").diffusion.schedule == "$API_TOKEN"
    assert "canary" not in config.help_text()
