"""Proves that no key of any section or built-in plug-in can be misspelt unnoticed.

Every misspelling by one edit is refused with the right name suggested; one of each key goes
through the command line: exit code 2 and one line, before any data are read.
"""

import contextlib
import io
from collections.abc import Iterator

import pytest
import yaml

from tinydiffusion import build, registry
from tinydiffusion.cli.main import main
from tinydiffusion.config import KEYS, PLUGIN_SECTIONS, ConfigError, from_dict, load
from tinydiffusion.run import train as train_command

NEEDED = {"folder": {"path": "x"}, "huggingface": {"path": "x"}, "tar": {"path": "x"}}
"""Options without a default, so that the misspelt one is the only mistake."""
NAMES = [f"{section}.name" for section in (*PLUGIN_SECTIONS, "validation")]
TYPED = [key for key in KEYS if key not in NAMES]
BETWEEN = {"sampling.guidance_escale"}
"""Misspellings that are one edit away from two keys."""


def edits(word: str, letters: str) -> set[str]:
    """The word after one deletion, insertion, substitution or exchange of neighbours."""
    cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    edited = {a + b[1:] for a, b in cuts if b}
    edited |= {a + b[0] + b for a, b in cuts if b}
    edited |= {a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1}
    edited |= {a + letter + b[1:] for a, b in cuts if b for letter in letters}
    edited |= {a + letter + b for a, b in cuts for letter in letters}
    return {e for e in edited if e} - {word}


def nested(key: str, value) -> dict:
    """{"a": {"b": value}} for "a.b"."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def joined(section: str, name: str) -> str:
    return f"{section}.{name}".lstrip(".")


def complaint(call) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- keys that are typed in config.py --------------------------------------------------------


@pytest.mark.parametrize("key", TYPED)
def test_a_key_misspelt_by_one_edit_is_refused_and_suggested(key):
    section, _, name = key.rpartition(".")
    for wrong in edits(name, "".join(sorted({*name, "x", "_"}))):
        misspelt = joined(section, wrong)
        assert misspelt not in KEYS
        message = complaint(lambda misspelt=misspelt: from_dict(nested(misspelt, 1)))
        assert message.startswith(f"unknown key {misspelt!r} (did you mean ")
        assert message.endswith(f"{key!r}?)") or misspelt in BETWEEN


@pytest.mark.parametrize("key", TYPED)
def test_hyphens_capitals_and_wrong_sections_are_understood(key):
    section, _, name = key.rpartition(".")
    for wrong in {name.replace("_", "-"), name.capitalize(), name.upper()} - {name}:
        message = complaint(lambda wrong=wrong: load(None, [f"--{joined(section, wrong)}", "1"]))
        assert message.endswith(f"(did you mean {key!r}?)")
    if section:
        message = complaint(lambda: from_dict({name: 1}))
        meant = next(k for k in TYPED if k.rpartition(".")[2] == name)  # of several, the first
        assert message == f"unknown key {name!r} (did you mean {meant!r}?)"


# ---- options of plug-ins ---------------------------------------------------------------------


def _plugins() -> Iterator[tuple[str, str, str]]:
    """Section, kind and name of every built-in plug-in that a section may give options to."""
    for kind in PLUGIN_SECTIONS:
        yield from ((kind, kind, name) for name in registry.builtin_names(kind))
    yield "validation", "dataset", "scenes"
    for name in registry.builtin_names("evaluator"):
        yield f"evaluation.options.{name}", "evaluator", name


PLUGINS = list(_plugins())


def settings(section: str, name: str, options: dict) -> dict:
    """A config with these options in the section."""
    if section.startswith("evaluation"):
        evaluation = {"metrics": [name], "reference": "train", "options": {name: options}}
        return {"evaluation": evaluation}
    return {section: {"name": name, **NEEDED.get(name, {}), **options}}


def check(section: str, name: str, options: dict) -> str:
    config = from_dict(settings(section, name, options))
    return complaint(lambda: build.check_plugins(config))


@pytest.mark.parametrize(("section", "kind", "name"), PLUGINS)
def test_an_option_misspelt_by_one_edit_is_refused_and_suggested(section, kind, name):
    allowed = build._Use(section, kind, name, {}).allowed()
    assert allowed
    for option in [*allowed, *({"name"} if f"{section}.name" in NAMES else ())]:
        for wrong in edits(option, "x_"):
            assert wrong not in allowed
            message = check(section, name, {wrong: 1})
            expected = f"{section}.{option}"
            assert message == f"unknown key '{section}.{wrong}' (did you mean {expected!r}?)"


def test_options_in_the_wrong_section_are_understood():
    for section, name, option, meant in (
        ("network", "unet", "width", "text_encoder.width"),
        ("text_encoder", "clip", "batch_size", "training.batch_size"),
        ("objective", "denoising", "steps", "sampling.steps"),
        ("dataset", "scenes", "caption-dropout-prob", "objective.caption_dropout_prob"),
    ):
        message = check(section, name, {option: 1})
        assert message == f"unknown key '{section}.{option}' (did you mean {meant!r}?)"


def test_what_the_run_sets_itself_is_no_option():
    for section, name, option in (
        ("network", "unet", "text_dim"),
        ("network", "unet", "in_channels"),
        ("objective", "denoising", "denoiser"),
        ("text_encoder", "clip", "captions"),
    ):
        assert check(section, name, {option: 1}).startswith(f"unknown key '{section}.{option}'")


def test_a_word_that_is_like_no_option_lists_them():
    message = check("network", "unet", {"zzzzzz": 1})
    assert message.startswith("unknown key 'network.zzzzzz'; there are name, channels, layers_per_")


# ---- the command line ------------------------------------------------------------------------


@pytest.fixture
def line(tmp_path, monkeypatch):
    """The one line that a dry run ends in."""

    def line(values: dict, *flags: str) -> str:
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(values))
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            assert main(["train", "--config", str(file), "--dry-run", *flags]) == 2
        (line,) = errors.getvalue().splitlines()
        return line

    monkeypatch.setattr(train_command, "build_training", lambda _: pytest.fail("read the data"))
    return line


@pytest.mark.parametrize("section", ["", "diffusion", "training", "sampling", "evaluation"])
def test_a_misspelt_key_ends_in_one_line_in_a_file_and_as_a_flag(section, line):
    for key in KEYS:
        if key.rpartition(".")[0] != section or key in NAMES:
            continue
        wrong = key[:-1] + "x"
        expected = f"error: unknown key {wrong!r} (did you mean {key!r}?)"
        assert line(nested(wrong, 1)) == line({}, f"--{wrong}=1") == expected


@pytest.mark.parametrize(("section", "kind", "name"), PLUGINS)
def test_a_misspelt_option_ends_in_one_line_in_a_file_and_as_a_flag(section, kind, name, line):
    option = list(build._Use(section, kind, name, {}).allowed() or {})[-1]
    wrong = f"{option[:-1]}x"
    expected = f"error: unknown key '{section}.{wrong}' (did you mean '{section}.{option}'?)"
    assert line(settings(section, name, {wrong: 1})) == expected
    assert line(settings(section, name, {}), f"--{section}.{wrong}=1") == expected
