"""What each part of a recipe is worth: the recipe, and variants of it, for the same wall clock.

python benchmarks/ablations.py scenes --minutes 3 --seeds 0 1 2 --out ablations-scenes.json

Prints one JSON object. See benchmarks/README.md.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from _ablation_table import BASE, summary, table
from _measuring import machine
from _variants import LADDERS, Variant

from tinydiffusion import config as config_file
from tinydiffusion.build import pick_device
from tinydiffusion.config import Config
from tinydiffusion.run.checks import check_config

ROOT = Path(__file__).parent.parent
TRAIN, CONTRASTIVE = ROOT / "train.py", ROOT / "benchmarks/_contrastive.py"
NEVER = 10**12  # pictures: the time is what ends a run
FIRST = {
    "training.num_pictures": NEVER,
    "training.checkpoint_every": NEVER,
    "sampling.every": NEVER,
    "sampling.prompts": [],
    "sampling.num_prompts": 1,
}
"""So that the time goes to training. A grid of one prompt is drawn at the start all the same."""
QUICK = {"config": str(ROOT / "configs/smoke.yaml"), "minutes": 0.01, "seeds": [0], "num_images": 4,
         "only": ["adamw"]}  # fmt: skip
QUICK_OVERRIDES = (
    "--dataset.num_scenes=64", "--sampling.steps=2", "--network.channels=[32]",
    "--network.attention_levels=[]", "--training.muon_modules=[text_encoder]",
)  # fmt: skip


class Run(NamedTuple):
    """One training, in a folder of its own."""

    name: str
    seed: int
    variant: Variant
    file: str  # of the config
    flags: list[str]
    folder: Path
    threads: int | None
    jobs: int

    def config(self) -> Config:
        """The run's settings, but for where its weights come from."""
        return config_file.load(self.file, self.flags)

    def asked(self) -> dict[str, Any]:
        """What decides its result: a run that was asked for in the same way is kept."""
        return {
            "config": config_file.to_dict(self.config()),
            "contrastive_seconds": self.variant.contrastive_seconds,
            "threads": self.threads,
            "jobs": self.jobs,
        }

    def command(self) -> list[str]:
        """What is started."""
        flags = ["--config", self.file, "--run-dir", str(self.folder / "run"), *self.flags]
        seconds = self.variant.contrastive_seconds
        if not seconds:
            return [sys.executable, str(TRAIN), *flags]
        return [
            sys.executable, str(CONTRASTIVE), str(seconds), str(self.folder / "start"), *flags
        ]  # fmt: skip

    def is_done(self) -> bool:
        """Whether its report is there, of these very settings."""
        asked, report = self.folder / "asked.json", self.folder / "run/report.json"
        return report.exists() and json.loads(asked.read_text()) == self.asked()


# ---- what is asked for -----------------------------------------------------------------------


def main() -> None:
    """Run what has not been run yet, and print what came out."""
    options, overrides = _options(sys.argv[1:])
    if options.quick:
        vars(options).update(QUICK)
        overrides = [*QUICK_OVERRIDES, *overrides]
    runs = _runs(options, overrides)
    _check(runs)
    failed: dict[tuple[str, int], str] = {}
    started = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for run, reason in all_ended([run for run in runs if not run.is_done()], options.jobs):
        if reason is not None:
            failed[run.name, run.seed] = reason
        print(f"{run.name}, seed {run.seed}: {reason or 'done'}", file=sys.stderr)
        _write(options, _report(options, overrides, runs, failed))
    signal.signal(signal.SIGTERM, started)
    result = _report(options, overrides, runs, failed)
    _write(options, result)
    print(json.dumps(result, indent=1))


def _options(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What stands before `--`, and the overrides behind it."""
    end = words.index("--") if "--" in words else len(words)
    return _parser().parse_args(words[:end]), list(words[end + 1 :])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Trains a recipe and variants of it. Flags behind a -- are keys of the config, "
        "for all of them, as for train.py.",
    )
    add = parser.add_argument
    add("ladder", choices=LADDERS, help="which recipe")
    add("--config", help="of the base, in place of the recipe's")
    add("--minutes", type=float, default=3, help="of training, each; default %(default)s")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default 0 1 2")
    add("--only", nargs="+", metavar="NAME", help="these variants, and the base")
    add("--skip", nargs="+", metavar="NAME", default=[], help="all but these")
    add("--tier", choices=("core", "all"), default="all", help="core: those that tell most")
    add("--num-images", type=int, help="to measure with; default: the config's")
    add("--jobs", type=int, default=1, help="runs beside each other; default %(default)s")
    add("--threads", type=int, help="of each run; default: as torch chooses")
    add("--runs", type=Path, metavar="DIR", help="default runs/ablations-<ladder>")
    add("--out", type=Path, metavar="JSON", help="written after every run")
    add("--markdown", type=Path, metavar="MD", help="the table, written after every run")
    add("--quick", action="store_true", help="a few seconds, to see that all of it works")
    return parser


def _runs(options: argparse.Namespace, overrides: Sequence[str]) -> list[Run]:
    """All that are asked for, seed by seed, so that an early end leaves whole rows."""
    ladder = LADDERS[options.ladder]
    if unknown := {*(options.only or ()), *options.skip} - {BASE, *ladder.variants}:
        sys.exit(f"there is no variant {min(unknown)}; there are {', '.join(ladder.variants)}")
    chosen = {BASE: Variant("the recipe itself")} | {
        name: variant
        for name, variant in sorted(ladder.variants.items(), key=lambda item: not item[1].core)
        if (variant.core or options.tier == "all" or options.only)
        and (options.only is None or name in options.only)
        and name not in options.skip
    }
    folder = options.runs or Path(f"runs/ablations-{options.ladder}")
    return [
        Run(
            name, seed, variant, options.config or str(ROOT / ladder.config),
            _flags(options, overrides, variant, seed), folder / f"{name}-{seed}",
            options.threads, options.jobs,
        )
        for seed in options.seeds
        for name, variant in chosen.items()
    ]  # fmt: skip


def _flags(
    options: argparse.Namespace, overrides: Sequence[str], variant: Variant, seed: int
) -> list[str]:
    budget = options.minutes - variant.contrastive_seconds / 60
    last = {"training.max_minutes": budget, "seed": seed}
    if options.num_images is not None:
        last["evaluation.num_images"] = options.num_images
    return [*_words(FIRST), *overrides, *_words(variant.overrides), *_words(last)]


def _words(overrides: Mapping[str, Any]) -> list[str]:
    return [f"--{key}={json.dumps(value)}" for key, value in overrides.items()]


def _check(runs: Sequence[Run]) -> None:
    """End at once where a variant's settings are impossible, and not hours later."""
    for run in runs:
        try:
            config = run.config()
            if config.training.max_minutes is None or config.training.max_minutes <= 0:
                raise ValueError("--minutes leaves no time to train after the text encoder")
            check_config(config)
        except ValueError as error:
            sys.exit(f"{run.name}: {error}; --skip {run.name} does without it")


# ---- the runs --------------------------------------------------------------------------------


def all_ended(runs: Sequence[Run], jobs: int) -> Iterator[tuple[Run, str | None]]:
    """The runs as they end, so many beside each other, each with why it failed, if it did."""
    waiting, running = list(runs), dict[subprocess.Popen[bytes], Run]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                running[_started(run)] = run
            ended = [process for process in running if process.poll() is not None]
            for process in ended:
                run = running.pop(process)
                yield run, _outcome(run, process.returncode)
            time.sleep(0 if ended else 0.2)
    finally:
        for process in running:
            process.terminate()
            process.wait()


def _started(run: Run) -> subprocess.Popen[bytes]:
    """The process; what an earlier one left in the folder is gone."""
    shutil.rmtree(run.folder, ignore_errors=True)
    run.folder.mkdir(parents=True)
    (run.folder / "asked.json").write_text(json.dumps(run.asked()))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if run.threads is not None:
        environment["OMP_NUM_THREADS"] = str(run.threads)
    with (run.folder / "log.txt").open("wb") as log:
        return subprocess.Popen(
            run.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )


def _outcome(run: Run, code: int) -> str | None:
    """Why it failed, or None; weights to go on from are not kept."""
    shutil.rmtree(run.folder / "run/checkpoints", ignore_errors=True)
    if run.is_done():
        return None
    lines = (run.folder / "log.txt").read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return f"exit code {code}: {last}"


# ---- what came out ---------------------------------------------------------------------------


def _report(
    options: argparse.Namespace,
    overrides: Sequence[str],
    runs: Sequence[Run],
    failed: dict[tuple[str, int], str],
) -> dict[str, Any]:
    """Everything that is printed."""
    ladder = LADDERS[options.ladder]
    rows: dict[str, dict[str, Any]] = {}
    for run in runs:
        told = {**run.variant._asdict(), "overrides": dict(run.variant.overrides), "runs": []}
        row = rows.setdefault(run.name, told)
        if run.is_done():
            row["runs"].append({"seed": run.seed, **_numbers(run, ladder.metrics)})
        elif reason := failed.get((run.name, run.seed)):
            row["runs"].append({"seed": run.seed, "failed": reason})
    return {
        "command": shlex.join(["python", "benchmarks/ablations.py", *sys.argv[1:]]),
        "config": options.config or ladder.config,
        "overrides": list(overrides),
        "num_images": runs[0].config().evaluation.num_images,
        **{key: getattr(options, key) for key in ("minutes", "seeds", "jobs")},
        "machine": machine(pick_device("auto")) | {"threads": options.threads or "torch's choice"},
        "metrics": list(ladder.metrics),
        "variants": summary(rows, ladder.metrics),
    }


def _numbers(run: Run, metrics: Sequence[str]) -> dict[str, Any]:
    report = json.loads((run.folder / "run/report.json").read_text())
    values = {row["name"]: row["value"] for row in report["results"]}
    return {
        **{name: values.get(name) for name in metrics},
        "pictures_seen": report["context"]["pictures_seen"],
        "pictures_per_second": values["pictures_per_second"],
        "training_seconds": report["context"]["training_seconds"],
        "threads": report["context"]["environment"]["threads"],
    }


def _write(options: argparse.Namespace, result: dict[str, Any]) -> None:
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(table(result))


if __name__ == "__main__":
    main()
