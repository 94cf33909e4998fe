"""Proves that the scripts of docs/slurm.md do what the page says, under a Slurm that only notes."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from process_toys import ROOT

from tinydiffusion.build import build_dataset
from tinydiffusion.cli.main import main
from tinydiffusion.sampling.folder import save_samples

PAGE = (ROOT / "docs" / "slurm.md").read_text()
STUB = """#!/bin/bash
printf '%s\\0' "$@" >> "$NOTES"
printf '\\n' >> "$NOTES"
wc -l < "$NOTES"
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch, untrained) -> Path:
    """A folder with the page's scripts, a model, prompts and real pictures."""
    for name, text in re.findall(r"^`([\w.]+)` .*?^```text\n(.*?)^```$", PAGE, re.M | re.S):
        (tmp_path / name).write_text(text)
    (tmp_path / "bin").mkdir()
    for program in ("sbatch", "tinydiffusion", "torchrun"):
        (tmp_path / "bin" / program).write_text(STUB)
        (tmp_path / "bin" / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "smoke").mkdir(parents=True)
    (tmp_path / "runs" / "smoke" / "model").symlink_to(untrained)
    scenes = build_dataset({"name": "scenes", "num_scenes": 8})
    rows = {i: {"text": scenes[i]["caption"][0]} for i in range(8)}
    save_samples(tmp_path / "my" / "held-out", ((i, scenes[i]["image"]) for i in rows), rows)
    assert main(["prompts", "prompts.jsonl", "--per-task", "1"]) == 0
    return tmp_path


def noted(script: str, **environment: str) -> list[list[str]]:
    """The arguments of every call that a script makes of a program that only notes."""
    notes = Path(os.environ["NOTES"])
    notes.unlink(missing_ok=True)
    subprocess.run(["bash", "-euc", script], env={**os.environ, **environment}, check=True)
    return [line.split("\0")[:-1] for line in notes.read_text().splitlines()]


def test_the_scripts_end_in_what_one_process_leaves(cluster, unchanged):
    jobs = noted((cluster / "submit.sh").read_text())
    assert [" ".join(word for word in job if "depend" in word) for job in jobs] == [
        "", "--dependency=afterok:1", "--dependency=afterok:2", "--dependency=afterok:3"
    ]  # fmt: skip
    done = []
    for job in jobs:
        script = job[-1] if "--wrap" in job else (cluster / job[-1]).read_text()
        array = re.search(r"--array=1-(\d+)", script)
        for task in range(1, int(array[1]) + 1) if array else [0]:
            (command,) = noted(script, SLURM_ARRAY_TASK_ID=str(task))
            assert main(command) == 0, command
            done.append(command)
    assert len(done) == 16 + 1 + 16 + 1

    sample = ["sample", "runs/smoke/model", "--prompts", "prompts.jsonl", "--num-images", "4"]
    assert main([*sample, "--out", "whole"]) == 0
    assert len(files := unchanged(cluster / "whole")) == 6 * 4 + 2
    assert unchanged(cluster / "samples") == files
    evaluate = [word for word in done[17] if word not in ("--shard", "1/16", "--state")]
    assert main([*evaluate[:-1], "--out", "whole.json"]) == 0
    one, many = (json.loads(Path(name).read_text()) for name in ("whole.json", "report.json"))
    assert [row["n"] for row in many["results"]] == [row["n"] for row in one["results"]]
    for a, b in zip(one["results"], many["results"], strict=True):
        assert b["value"] == pytest.approx(a["value"], rel=1e-9, abs=1e-9)


def test_the_lines_for_a_launcher_run(cluster, capsys):
    (block,) = re.findall(r"^```text\n(torchrun.*?)^```$", PAGE, re.M | re.S)
    for words in noted(block):
        assert words[:2] == ["--nproc-per-node", "2"]
        assert main([words[2].removesuffix(".py"), *words[3:]]) == 0
    assert "report in report.json" in capsys.readouterr().err
