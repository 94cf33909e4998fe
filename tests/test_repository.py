"""What must be true of the whole repository: its files, their sizes, and what they may name."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

import tinydiffusion

ROOT = Path(__file__).parents[1]
MAX_LINES = 400
HOSTS = [
    ".".join(parts)
    for parts in [
        ("pypi", "org"), ("pypi", "python", "org"), ("pythonhosted", "org"), ("anaconda", "org"),
        ("download", "pytorch", "org"), ("registry", "npmjs", "org"), ("pypi", "nvidia", "com"),
    ]
]  # fmt: skip
MACHINE_PATHS = [f"/{folder}/" for folder in ("work", "root")]
INSTALL = "pip install -e '.[dev]'"


def git_files() -> list[Path]:
    """Tracked files, and new ones that are not ignored."""
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "-c", "-o", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return sorted(ROOT / name for name in listing.stdout.split("\0") if name)


FILES = [file for file in git_files() if file.is_file()]
CONFIGS = [file for file in FILES if file.parent == ROOT / "configs"]


def test_git_lists_the_files():
    assert Path(__file__) in FILES
    assert CONFIGS


def test_no_file_names_a_package_index_or_a_path_of_one_machine():
    forbidden = [word.encode() for word in HOSTS + MACHINE_PATHS]
    found = [(file, word) for file in FILES for word in forbidden if word in file.read_bytes()]
    assert found == []


def test_no_weights_and_no_big_files():
    suffixes = {".pt", ".pth", ".ckpt", ".pkl", ".safetensors", ".npz"}
    assert [file for file in FILES if file.suffix in suffixes] == []
    assert [file for file in FILES if file.stat().st_size > 1_000_000] == []


def test_no_file_of_code_is_long():
    code = [file for file in FILES if file.suffix == ".py" or file.name in ("check", "run")]
    lengths = {str(file): len(file.read_text().splitlines()) for file in code}
    assert {file: length for file, length in lengths.items() if length > MAX_LINES} == {}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda file: file.name)
def test_a_config_begins_with_its_command(config):
    default = ["# python train.py"] if config.name == "quickstart.yaml" else []
    command = f"# python train.py --config configs/{config.name}"
    assert config.read_text().splitlines()[0] in [command, *default]


def test_every_file_in_the_readme_exists():
    (tree,) = re.findall(
        r"^```text tree\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    named = [ROOT / line.split()[0] for line in tree.splitlines()]
    assert [file for file in named if not file.exists()] == []
    package = ROOT / "tinydiffusion"
    modules = [file for file in package.glob("*.py") if file.name != "__init__.py"]
    folders = [file.parent for file in package.glob("*/__init__.py")]
    assert [file for file in modules + folders if file not in named] == []


def test_ci_runs_what_the_readme_says():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[-2:] == [INSTALL, "./check"]
    assert f"{INSTALL} && ./check" in (ROOT / "README.md").read_text()
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    assert f"{INSTALL}\n./check\n" in contributing
    assert len(contributing.splitlines()) <= 50


@pytest.mark.parametrize("script", ["check", ".ci/run"])
def test_scripts_can_be_run(script):
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == tinydiffusion.__version__
    assert f"## [{tinydiffusion.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
