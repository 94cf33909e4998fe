"""Proves that `train` says whether it compiles, holds a run to it, and leaves sampling eager."""

import shutil

import pytest
import torch

from tinydiffusion import build
from tinydiffusion.cli.main import main
from tinydiffusion.runtime import compilation

ALWAYS = ("--training.compile", "always")


@pytest.fixture
def compiled_calls(monkeypatch):
    """A stand-in for torch.compile that compiles nothing; the names of what was called."""
    calls = []

    def stand_in(function, **options):
        def compiled(module, *inputs):
            assert len(inputs[0] if module.__class__.__name__ == "UNet" else inputs[0].ids) == 8
            calls.append(module.__class__.__name__)
            return function(module, *inputs)

        return compiled

    monkeypatch.setattr(torch, "compile", stand_in)
    monkeypatch.setattr(build, "compile_obstacle", lambda device: None)
    return calls


def test_compiled_training_calls_compiled_code_and_leaves_the_same_run(
    tiny, finished, tmp_path, compiled_calls, unchanged, capsys
):
    assert main(["train", "--config", tiny, "--run-dir", str(tmp_path / "run"), *ALWAYS]) == 0
    assert "compiled: training.compile is always" in capsys.readouterr().err
    assert sorted(compiled_calls) == ["ClipTextEncoder"] * 8 + ["UNet"] * 8  # steps of 8 pictures
    for part in ("model", "checkpoints", "samples"):
        ours, theirs = unchanged(tmp_path / "run" / part), unchanged(finished / part)
        assert ours.keys() == theirs.keys()
        weights = [name for name in ours if name.endswith((".safetensors", ".png"))]
        assert weights
        assert [name for name in weights if ours[name] != theirs[name]] == []


def test_a_run_goes_on_as_it_began(tiny, finished, tmp_path, compiled_calls, capsys):
    copy = shutil.copytree(finished, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints/000002-pictures-64")
    command = ["train", "--config", tiny, "--run-dir", str(copy)]
    assert main([*command, *ALWAYS]) == 2
    error = capsys.readouterr().err
    assert "training.compile: 'eager' -> 'compiled'" in error
    assert "--allow-change training.compile" in error
    assert compiled_calls == []
    assert main([*command, "--training.compile", "never"]) == 0  # what "auto" came to
    assert compiled_calls == []


def test_it_goes_on_otherwise_when_asked_to(tiny, finished, tmp_path, compiled_calls, capsys):
    copy = shutil.copytree(finished, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints/000002-pictures-64")
    command = ["train", "--config", tiny, "--run-dir", str(copy), *ALWAYS]
    assert main([*command, "--allow-change", "training.compile"]) == 0
    assert "changed: training.compile: 'eager' -> 'compiled'" in capsys.readouterr().err
    assert len(compiled_calls) == 2 * 4


def test_always_is_refused_where_nothing_can_be_compiled(tiny, tmp_path, monkeypatch, mistake):
    monkeypatch.setenv("CXX", "c++-of-mine")
    line = mistake("train", "--config", tiny, "--run-dir", str(tmp_path / "run"), *ALWAYS)
    assert line == (
        "training.compile 'always' is not possible: there is no compiler 'c++-of-mine'; 'auto' and "
        "'never' train without"
    )
    assert not (tmp_path / "run").exists()


def test_auto_says_so_and_stays_eager(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compilation.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    assert main(["train", "--config", tiny, "--run-dir", str(tmp_path / "run"), "--dry-run"]) == 0
    told = capsys.readouterr().err
    assert "eager: torch.compile is not possible, there is no compiler" in told


def test_dry_run_counts_what_compiled_code_would_hide(
    tiny, tmp_path, compiled_calls, monkeypatch, capsys
):
    stances = []
    set_stance = torch.compiler.set_stance
    monkeypatch.setattr(
        torch.compiler, "set_stance", lambda name: stances.append(name) or set_stance(name)
    )
    command = ["train", "--config", tiny, "--run-dir", str(tmp_path / "run"), "--dry-run"]
    assert main([*command, *ALWAYS]) == 0
    assert stances == ["force_eager"]
    assert "warm-up" in capsys.readouterr().err
