"""Holds what a dry run says against what the run then takes: time, memory and disk.

python benchmarks/plan.py

Prints one JSON object; the exit code is 1 if a promise was broken. See benchmarks/README.md.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MOST = {"seconds": 2.0, "process_bytes": 1.5, "checkpoint_bytes": 1.05, "model_bytes": 1.05}
"""How far what is said may lie from what is, as a factor."""


def main() -> int:
    """1 where a promise was broken, else 0."""
    parser = argparse.ArgumentParser(description="A dry run against the run.")
    parser.add_argument("--config", default="configs/smoke.yaml", help="Default %(default)s.")
    options, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = ["train.py", "--config", options.config, "--run-dir", str(run_dir), *flags]
        plan_file = Path(folder) / "plan.json"
        start(*command, "--dry-run", "--json", str(plan_file))
        peak = start(*command)
        said, is_so = planned(json.loads(plan_file.read_bytes())), happened(run_dir, peak)
    ratios = {name: said[name] / is_so[name] for name in said}
    broken = [
        f"{name}: {said[name]:.4g} said, {is_so[name]:.4g} in the run"
        for name, ratio in ratios.items()
        if not 1 / MOST[name] <= ratio <= MOST[name]
    ]
    result = {
        "config": options.config,
        "machine": f"{platform.machine()}, 1 thread on {os.cpu_count()} cores",
        "planned": said,
        "run": is_so,
        "ratio": ratios,
        "broken": broken,
    }
    print(json.dumps(result, indent=1))
    return 1 if broken else 0


def start(*arguments: str) -> int:
    """The largest resident size of a command, in bytes; ends with its message where it fails."""
    command, environment = [sys.executable, *arguments], {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            log.seek(0)
            sys.exit(log.read().decode())
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def planned(plan: dict[str, Any]) -> dict[str, float]:
    """What the dry run says."""
    time, memory, disk = (plan["sections"][name] for name in ("time", "memory", "disk"))
    return {
        "seconds": time["total"]["value"],
        "process_bytes": memory["process"]["value"],
        "checkpoint_bytes": disk["a checkpoint"]["value"],
        "model_bytes": disk["model/"]["value"],
    }


def happened(run_dir: Path, peak: int) -> dict[str, float]:
    """What the run has taken."""
    report = json.loads((run_dir / "report.json").read_bytes())
    checkpoint = next((run_dir / "checkpoints").iterdir())
    return {
        "seconds": report["context"]["total_seconds"],
        "process_bytes": peak,
        "checkpoint_bytes": folder_bytes(checkpoint),
        "model_bytes": folder_bytes(run_dir / "model"),
    }


def folder_bytes(folder: Path) -> int:
    """Of all files in it."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    sys.exit(main())
