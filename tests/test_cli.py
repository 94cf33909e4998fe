"""Proves that the command line is quick and helpful, and tells mistakes in one line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tinydiffusion import __version__, registry
from tinydiffusion.cli.main import COMMANDS, main
from tinydiffusion.runtime.errors import DiskFullError, NonFiniteError, exit_code_of

ROOT = Path(__file__).parents[1]


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    """A Python process of its own, in the repository unless told otherwise."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        **{"cwd": ROOT, **options},
    )


# ---- help ------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", ["train", "sample", "evaluate"])
def test_help_of_the_doors_imports_no_torch(door):
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['{door}.py', '--help']\n"
        f"try: runpy.run_path('{door}.py', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'rich', 'PIL', 'open_clip'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = run("-c", program)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: tinydiffusion {door}")
    assert result.stderr == ""


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_the_package_is_a_door_that_imports_no_torch(flag):
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['tinydiffusion', '{flag}']\n"
        "try: runpy.run_module('tinydiffusion', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    result = run("-c", program)
    assert result.returncode == 0, result.stderr
    if flag == "--version":
        assert result.stdout == f"tinydiffusion {__version__}\n"
    else:
        assert result.stdout.startswith("usage: tinydiffusion")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert COMMANDS[command].HELP in shown


def test_help_of_train_lists_the_keys_and_of_the_others_the_plugins(capsys):
    for command, words in (
        ("train", ["--training.batch_size", "--sampling.guidance_scale", "--resume", "--dry-run"]),
        ("sample", registry.names("sampler")),
        ("evaluate", registry.names("evaluator")),
    ):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        assert all(word in shown for word in words)


def test_without_a_command_the_commands_are_listed(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"^    {command}\s", shown, re.MULTILINE) for command in COMMANDS)


# ---- mistakes --------------------------------------------------------------------------------


def test_a_mistake_at_a_door_is_one_line_and_exit_code_2():
    result = run("train.py", "--config", "configs/smoke.yaml", "--training.batch_sise", "3")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        "error: unknown key 'training.batch_sise' (did you mean 'training.batch_size'?)\n"
    )


def test_the_module_is_a_door_too():
    result = run("-m", "tinydiffusion.cli.main", "plugins", "sampler")
    assert result.returncode == 0
    assert result.stdout.split()[:3] == ["sampler", "ddim", "built-in"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["trian"],
        ["--train"],
        ["train", "stray"],
        ["train", "--config"],
        ["train", "--resum"],
        ["sample"],
        ["sample", "model", "--stps", "3"],
        ["evaluate", "model"],
        ["plugins", "samplr"],
        ["plugins", "sampler", "evaluator"],
        ["plugins", "--kind", "sampler"],
        ["sanity", "--config", "nope.yaml"],
        ["sanity", "--training.batch_sise", "3"],
    ],
)
def test_wrong_arguments_are_one_line(arguments, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"error: [^\n]+\n", captured.err)


@pytest.mark.parametrize("command", ["train", "sample", "evaluate"])
def test_no_shortened_flag_is_accepted(command, monkeypatch, capsys):
    """argparse would take `--resum` for `--resume`; a typo must not train."""
    with pytest.raises(SystemExit):
        main([command, "--help"])
    usage = capsys.readouterr().out.split("\n\n")[0]
    flags = {flag for flag in re.findall(r"--[\w-]+", usage) if flag != "--help"}
    assert len(flags) >= 5
    needed = {"sample": ["model", "prompt"], "evaluate": ["model", "--metrics", "fid"], "train": []}
    monkeypatch.chdir(ROOT)
    for short in {flag[:-1] for flag in flags} - flags:
        assert main([command, *needed[command], short, "1"]) == 2
        error = capsys.readouterr().err
        assert f"unrecognized arguments: {short}" in error or f"unknown key '{short[2:]}'" in error


# ---- other ends ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (ValueError("wrong"), 2, "error: wrong\n"),
        (NonFiniteError("loss is NaN"), 4, "error: loss is NaN\n"),
        (DiskFullError("no space"), 3, "error: no space\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_codes(monkeypatch, capsys, error, code, shown):
    assert main(failing(monkeypatch, error)) == code
    assert capsys.readouterr().err == shown


@pytest.mark.parametrize("error", [TypeError("a"), ZeroDivisionError("b"), KeyError("c")])
def test_our_own_mistakes_keep_their_traceback(monkeypatch, error):
    with pytest.raises(type(error)):
        main(failing(monkeypatch, error))


def test_debug_shows_the_traceback_of_a_users_mistake(monkeypatch):
    with pytest.raises(ValueError, match="wrong"):
        main([*failing(monkeypatch, ValueError("wrong")), "--debug"])


def failing(monkeypatch, error) -> list[str]:
    """A command line whose command raises the error."""

    def fail(parser, arguments):
        raise error

    monkeypatch.setattr(COMMANDS["plugins"], "run", fail)
    return ["plugins"]


# ---- plugins ---------------------------------------------------------------------------------


def test_plugins_are_listed_with_their_origin(capsys):
    assert main(["plugins"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [[kind, name] for kind, name, _ in lines] == [
        [kind, name] for kind in registry.KINDS for name in registry.names(kind)
    ]
    assert ["sampler", "ddpm", "built-in"] in lines


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("wrong"), 2), (NonFiniteError("NaN"), 4), (OSError("gone"), 3),
        (TypeError("a bug"), 1), (KeyboardInterrupt(), 130),
    ],
)  # fmt: skip
def test_other_processes_end_with_the_code_of_the_error(error, code):
    """A bug in one process is no mistake of the user in the others."""
    assert exit_code_of(error) == code
