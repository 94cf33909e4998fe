"""Kills a real training run at random moments, again and again; checks that nothing is lost.

python benchmarks/kill.py

Prints one JSON object; the exit code is 1 if a promise was broken. See benchmarks/README.md.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch

from tinydiffusion.training.checkpoints.folder import (
    CheckpointError,
    CheckpointFolder,
    load_checkpoint,
)

TRAIN = Path(__file__).parent.parent / "train.py"
NUM_PICTURES = 1200
CONFIG = f"""
dataset: {{name: scenes, size: 16, num_scenes: 32}}
text_encoder: {{name: clip, width: 8, layers: 1, heads: 2}}
network: {{name: unet, channels: [8], head_dim: 8, attention_levels: [], layers_per_block: 1,
  patch_size: 4, preview_size: 4}}
training:
  {{num_pictures: {NUM_PICTURES}, batch_size: 4, warmup_pictures: 8, checkpoint_every: 4,
   log_every: 16, keep_checkpoints: 2, precision: float32, device: cpu}}
sampling: {{steps: 1, every: 100000, num_prompts: 1}}
"""
TIMES = ("seconds", "pictures_per_second", "data_wait")
WINDOW = 0.25  # random moments lie within this share of the run without a stop
AIMS = ("any", "any", "any", "start-up", ".tmp", ".trash", "finishing")


class Moment(NamedTuple):
    """When to kill: seconds after the sign of life, then at a sight, then seconds after that."""

    delay: float  # a negative one: minus the seconds after the start of the process
    sight: str = ""  # how the name of something in the folder of checkpoints begins; or "finishing"
    then: float = 0.0


class Timing(NamedTuple):
    """Seconds that the run without a stop took."""

    start_up: float  # from the start of the process to the first checkpoint
    total: float  # from the sign of life to the end
    finishing: float  # from the last checkpoint to the end

    def draw(self, random: Random) -> Moment:
        """A moment of one of the kinds in AIMS."""
        aim = random.choice(AIMS)
        if aim == "start-up":
            return Moment(-random.uniform(0, self.start_up))
        if aim == "finishing":
            return Moment(0.0, aim, random.uniform(0, self.finishing))
        sight = aim if aim.startswith(".") else ""
        return Moment(random.uniform(0, WINDOW * self.total), sight)


class Run:
    """One training run in a folder of its own, always started by the very same command."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "tiny.yaml").write_text(CONFIG)
        self.folder, self.run_dir = folder, folder / "run"
        self.checkpoints = CheckpointFolder(self.run_dir / "checkpoints")
        self.log = folder / "console.log"

    def start(self) -> subprocess.Popen[bytes]:
        """The process."""
        command = [sys.executable, str(TRAIN), "--config", "tiny.yaml", "--run-dir", "run"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self.log.open("wb") as log:
            return subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, env=environment
            )

    def shows_life(self) -> bool:
        """Whether the process has said a word: the time of importing is over."""
        return self.log.stat().st_size > 0

    def saved(self) -> int:
        """The position of the newest checkpoint with a final name, -1 where there is none."""
        return max((int(p.name.split("-")[-1]) for p in self.checkpoints.list()), default=-1)

    def resumed_from(self) -> int:
        """The position that the latest process says it goes on from, -1 where it says nothing."""
        found = re.search(r"resuming from picture (\d+)", self.log.read_text())
        return int(found[1]) if found else -1

    def has_stepped(self) -> bool:
        """Whether the latest process has reported a step."""
        return f"/{NUM_PICTURES} pictures" in self.log.read_text()

    def shows(self, sight: str) -> bool:
        """Whether a sight is there, see `Moment`."""
        if sight == "finishing":
            return self.saved() == NUM_PICTURES
        return any(self.checkpoints.path.glob(f"{sight}*"))

    def timed(self) -> Timing:
        """How long it takes without a stop."""
        process, began = self.start(), time.monotonic()
        life = first = last = 0.0
        while process.poll() is None:
            now = time.monotonic() - began
            life = life or now * self.shows_life()
            first = first or now * (self.saved() >= 0)
            last = last or now * self.shows("finishing")
            time.sleep(0.005)
        if process.returncode:
            sys.exit(self.log.read_text())
        end = time.monotonic() - began
        return Timing(first, end - life, end - last)

    def leftovers(self) -> set[tuple[str, int, int]]:
        """What was being written or deleted when a process died: path, inode and time."""
        found = set()
        for path in self.run_dir.rglob(".t*"):
            if path.name.startswith((".tmp", ".trash")):
                status = path.stat()
                found.add((str(path), status.st_ino, status.st_mtime_ns))
        return found

    def damaged(self) -> list[str]:
        """What is wrong with the checkpoints that have a final name."""
        errors = []
        for path in self.checkpoints.list():
            try:
                load_checkpoint(path)
            except CheckpointError as error:
                errors.append(str(error))
        return errors

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl without the times."""
        rows = map(json.loads, (self.run_dir / "metrics.jsonl").read_text().splitlines())
        return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


class Tally:
    """What has happened, and every promise that was broken."""

    def __init__(self) -> None:
        self.kills = self.rounds = self.resumes = 0
        self.broken: list[str] = []
        self.left = Counter({".tmp": 0, ".trash": 0})
        self.phases: Counter[str] = Counter()

    def kill_once(self, run: Run, moment: Moment | None) -> bool:
        """Whether the run ended before the moment; without one it is left to end."""
        before, saved_before = run.leftovers(), run.saved()
        process = run.start()
        if _ends_before(moment, run, process):
            self._check_start(run, saved_before)
            if process.returncode:
                sys.exit(f"{run.folder}: exit code {process.returncode}\n{run.log.read_text()}")
            return True
        acknowledged = run.saved()
        process.kill()
        process.wait()
        self.kills += 1
        self._check_start(run, saved_before)
        if run.saved() < acknowledged:
            self.broken.append(f"{run.folder.name}: checkpoint {acknowledged} was lost")
        self.broken += run.damaged()
        new = [Path(path) for path, *_ in run.leftovers() - before]
        self._count_phase(run, {p.name for p in new if p.parent == run.checkpoints.path})
        return False

    def _check_start(self, run: Run, saved_before: int) -> None:
        resumed_from = run.resumed_from()
        self.resumes += resumed_from >= 0
        if resumed_from != saved_before and (resumed_from >= 0 or run.has_stepped()):
            self.broken.append(
                f"{run.folder.name}: resumed from {resumed_from}, but {saved_before} was saved"
            )

    def _count_phase(self, run: Run, leftovers: set[str]) -> None:
        left = {kind for kind in self.left if any(name.startswith(kind) for name in leftovers)}
        self.left.update(left)
        if left:
            phase = "rotating" if ".trash" in left else "saving"
        elif run.saved() == NUM_PICTURES:
            phase = "finishing"
        else:
            phase = "stepping" if run.has_stepped() else "start-up"
        self.phases[phase] += 1

    def compare(self, run: Run, unbroken: Run) -> None:
        """Note every difference between a finished run and the unbroken one."""
        self.rounds += 1
        differences = [
            *_checkpoint_differences(run, unbroken),
            *_folder_differences(run.run_dir / "model", unbroken.run_dir / "model"),
        ]
        if run.rows() != unbroken.rows():
            differences.append("metrics.jsonl")
        kinds = Counter((row["pictures_seen"], *sorted(row)) for row in run.rows())
        if max(kinds.values()) > 1:
            differences.append(f"duplicate rows of metrics.jsonl: {kinds.most_common(1)}")
        json.loads((run.run_dir / "report.json").read_text())
        if run.leftovers():
            differences.append(f"leftovers: {run.leftovers()}")
        self.broken += [f"{run.folder.name}: not as the unbroken run: {d}" for d in differences]

    def report(self) -> dict[str, Any]:
        """What is printed."""
        return {
            "kills": self.kills,
            "runs_finished": self.rounds,
            "resumes_checked": self.resumes,
            "kills_that_left_tmp": self.left[".tmp"],
            "kills_that_left_trash": self.left[".trash"],
            "phases": dict(self.phases),
            "broken": self.broken,
        }


def _ends_before(moment: Moment | None, run: Run, process: subprocess.Popen[bytes]) -> bool:
    if moment is None:
        process.wait()
        return True
    while moment.delay >= 0 and process.poll() is None and not run.shows_life():
        time.sleep(0.002)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(abs(moment.delay))
    while moment.sight and process.poll() is None and not run.shows(moment.sight):
        # a deletion takes less than a millisecond
        time.sleep(0.002 if moment.sight == "finishing" else 0)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(moment.then)
    return process.poll() is not None


def _checkpoint_differences(run: Run, unbroken: Run) -> list[str]:
    (_, ours), (_, theirs) = run.checkpoints.load(), unbroken.checkpoints.load()
    differences = []
    for part in ("model", "ema", "optimizer"):
        left, right = getattr(ours, part), getattr(theirs, part)
        same = left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)
        differences += [] if same else [f"{part} of the last checkpoint"]
    states = [{k: v for k, v in it.state.items() if k not in TIMES} for it in (ours, theirs)]
    return differences + (["state of the last checkpoint"] if states[0] != states[1] else [])


def _folder_differences(ours: Path, theirs: Path) -> list[str]:
    left, right = (
        {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        for folder in (ours, theirs)
    )
    names = sorted(left.keys() | right.keys())
    return [f"model/{name}" for name in names if left.get(name) != right.get(name)]


def _kill_and_compare(work: Path, num_kills: int, seed: int) -> Tally:
    tally, random = Tally(), Random(seed)
    unbroken = Run(work / "unbroken")
    timing = unbroken.timed()
    while tally.kills < num_kills and not tally.broken:
        run = Run(work / f"run-{tally.rounds:03d}")
        ended = False
        while not ended:
            enough = tally.kills >= num_kills
            ended = tally.kill_once(run, None if enough else timing.draw(random))
        tally.compare(run, unbroken)
    return tally


def main() -> int:
    """The exit code: 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="tinydiffusion-kill-"))
    start = time.monotonic()
    tally = _kill_and_compare(work, options.kills, options.seed)
    report = {**tally.report(), "total_seconds": round(time.monotonic() - start)}
    if tally.broken:
        report["kept"] = str(work)
    else:
        shutil.rmtree(work)
    print(json.dumps(report, indent=1))
    return 1 if tally.broken else 0


if __name__ == "__main__":
    sys.exit(main())
