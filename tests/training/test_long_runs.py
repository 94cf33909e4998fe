"""The long proofs of benchmarks/, in small: a few real SIGKILLs, and memory over 1,500 steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]


def run(benchmark, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / benchmark), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(ended.stdout)


def test_real_kills_lose_nothing():
    report = run("kill.py", "--kills", "6")
    assert report["kills"] == sum(report["phases"].values()) == 6
    assert report["broken"] == []


def test_memory_and_open_files_stay_as_they_are():
    report = run("soak.py", "--steps", "1500")
    assert report["last"]["step"] == 1500
    assert report["flat"]
