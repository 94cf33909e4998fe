"""Proves that the tutorial's package, installed by pip without network, is a metric by its name."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"


def code(kind: str) -> str:
    """The page's one block of this kind."""
    (text,) = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return text


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder of packages with the tutorial's in it."""
    pytest.importorskip("setuptools", minversion="70.1")
    package, site = tmp_path_factory.mktemp("package"), tmp_path_factory.mktemp("site")
    (package / "sharpness.py").write_text(code("python"))
    (package / "pyproject.toml").write_text(code("toml"))
    offline = ["--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", "-q", *offline, "--target", site, package]
    subprocess.run(command, check=True)
    return site


def run(site: Path, *arguments) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(site), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "tinydiffusion.cli.main", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_an_evaluator_is_twenty_lines():
    body = code("python").partition("class Sharpness")[2]
    assert len([line for line in body.splitlines() if line.strip()]) <= 20


def test_the_package_is_listed_with_its_origin_and_measures_by_its_name(site, tmp_path):
    shown = run(site, "plugins", "evaluator").stdout
    assert re.search(
        r"sharpness +sharpness:Sharpness of tinydiffusion-sharpness 1\.0", shown.replace("_", "-")
    )
    for i in range(3):
        image = Image.new("RGB", (4, 4))
        image.paste((10 * i, 10 * i, 10 * i), (2, 0, 4, 4))
        image.save(tmp_path / f"{i}.png")
    out = tmp_path / "report.json"
    result = run(site, "evaluate", tmp_path, "--metrics", "sharpness", "--out", out)
    assert result.returncode == 0, result.stderr
    (row,) = json.loads(out.read_text())["results"]
    assert row["value"] == pytest.approx(10 / 3)
    assert row["per_picture"] == {"0": 0, "1": pytest.approx(10 / 3), "2": pytest.approx(20 / 3)}


def test_two_packages_of_one_name_are_both_named(site, tmp_path):
    info = tmp_path / "rival-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
    points = "[tinydiffusion.evaluators]\nsharpness = rival:Blur\n"
    (info / "entry_points.txt").write_text(points)
    result = run(Path(f"{site}{os.pathsep}{tmp_path}"), "evaluators")
    assert result.returncode == 2
    assert "'sharpness' is claimed by sharpness:Sharpness and by rival:Blur" in result.stderr
