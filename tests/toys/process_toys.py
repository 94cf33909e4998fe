"""Command lines done by several processes of torchrun, each one's words apart."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import tinydiffusion

ROOT = Path(tinydiffusion.__file__).parents[1]
TORCHRUN = [
    sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d",
    "--rdzv-endpoint", "localhost:0", "--nproc-per-node",
]  # fmt: skip


class Said(NamedTuple):
    """What a command left in one process."""

    code: int
    out: str
    err: str


def start(count: int, *command: str | Path) -> subprocess.Popen:
    """A launcher of so many processes."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    return subprocess.Popen(
        [*TORCHRUN, str(count), *map(str, command)], env=environment, cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def kill(launcher: subprocess.Popen) -> None:
    """SIGKILL to the launcher and all that it has started."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, check=True)
    pairs = [map(int, line.split()) for line in listed.stdout.splitlines()]
    children = [pid for pid, parent in pairs if parent == launcher.pid]
    for pid in (launcher.pid, *children):
        os.kill(pid, signal.SIGKILL)
    launcher.communicate()


def run_together(count: int, commands: list[list[str]], folder: Path) -> list[list[Said]]:
    """For each command what it left in each process; `RANK` in a word stands for the process."""
    (folder / "commands.json").write_text(json.dumps(commands))
    launcher = start(count, __file__, folder)
    _, errors = launcher.communicate(timeout=240)
    assert launcher.returncode == 0, errors
    by_rank = [json.loads((folder / f"said-{rank}.json").read_text()) for rank in range(count)]
    return [[Said(*said) for said in command] for command in zip(*by_rank, strict=True)]


def _run(folder: Path) -> None:
    """One process: join once, then do every command."""
    from tinydiffusion.cli import main
    from tinydiffusion.evaluation import evaluate
    from tinydiffusion.run import train
    from tinydiffusion.runtime.processes import joined
    from tinydiffusion.sampling import sample

    main.GRACE = 0
    with joined("cpu") as processes:
        for command in (evaluate, sample, train):
            command.joined = lambda device: contextlib.nullcontext(processes)
        said = []
        for words in json.loads((folder / "commands.json").read_text()):
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main.main([word.replace("RANK", str(processes.rank)) for word in words])
            said.append(Said(code, out.getvalue(), err.getvalue()))
            processes.wait()
        (folder / f"said-{processes.rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    _run(Path(sys.argv[1]))
