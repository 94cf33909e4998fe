"""Proves that a change moved nothing in the numbers: trains, saves and draws at two commits.

python dev/same_numbers.py f3f28e1

`configs/smoke.yaml` is trained at the commit and here; the loss curves and the weights must be the
same to the bit, and so must the PNG files that both draw with the earlier model.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

HERE = Path(__file__).parents[1]
TIMES = ("seconds", "pictures_per_second", "data_wait")
PROMPTS = ["a red circle left of a blue square on a white background", "a green triangle"]


def run(tree: Path, *command: str) -> None:
    """Run a command of the tinydiffusion in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    subprocess.run([sys.executable, *command], cwd=tree, env=environment, check=True)


def curve(run_dir: Path) -> list[dict[str, object]]:
    """Read the rows of losses, without what is measured by the clock."""
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    kept = [{k: v for k, v in row.items() if k not in (*TIMES, "grid")} for row in rows]
    return [row for row in kept if any("loss" in key for key in row)]


def differences(base: Path, here: Path) -> list[str]:
    """Name what of two runs is not the same to the bit."""
    found = [] if curve(base) == curve(here) else ["loss curve"]
    for component in ("network", "text_encoder"):
        name = f"model/{component}/diffusion_pytorch_model.safetensors"
        ours, theirs = load_file(here / name), load_file(base / name)
        found += [] if ours.keys() == theirs.keys() else [f"names of {component}"]
        found += [n for n in ours if n in theirs and not torch.equal(ours[n], theirs[n])]
    return found


def main() -> int:
    """Compare this tree with a commit; the exit code is 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit")
    commit = parser.parse_args().commit
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree = folder / "tree"
        git = ["git", "-C", str(HERE)]
        subprocess.run([*git, "worktree", "add", "--detach", str(tree), commit], check=True)
        try:
            runs = {"base": tree, "here": HERE}
            for each, source in runs.items():
                config = ["--config", "configs/smoke.yaml", "--run-dir", str(folder / each)]
                run(source, "train.py", *config)
            for each, source in runs.items():
                draw = [str(folder / "base/model"), *PROMPTS, "--num-images", "4"]
                run(source, "sample.py", *draw, "--out", str(folder / f"{each}-samples"))
            broken = differences(folder / "base", folder / "here")
            for file in sorted((folder / "base-samples").glob("*.png")):
                other = folder / "here-samples" / file.name
                broken += [] if other.read_bytes() == file.read_bytes() else [file.name]
            rows = len(curve(folder / "base"))
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(tree)], check=True)
    print(json.dumps({"commit": commit, "rows_of_losses": rows, "broken": broken}))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
