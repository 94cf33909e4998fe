"""How soon the text controls the picture: ours against a baseline put together from diffusers.

python benchmarks/time_to_control.py

Prints one JSON object. See benchmarks/README.md.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from math import inf, isfinite
from pathlib import Path
from statistics import median
from typing import Any

from _contenders import Task
from _diffusers_baseline import EXAMPLES_BATCH
from _measuring import machine

from tinydiffusion import config as config_file
from tinydiffusion.build import pick_device
from tinydiffusion.evaluation.report.charts import LEFT, TOP, Line, chart

ROOT = Path(__file__).parent.parent
CALLED = {"ours": "tinydiffusion", "baseline": "diffusers"}
NAMES = tuple(CALLED)
THRESHOLDS = (0.5, 0.8, 0.9, 0.95)
QUICK = {
    "config": "configs/smoke.yaml",
    "minutes": 0.02,
    "every": 0.6,
    "num_images": 4,
    "seeds": [0],
    "baseline_precision": "float32",
    "baseline_batch": 4,
}
QUICK_OVERRIDES = ("--sampling.steps", "2", "--dataset.num_scenes", "64")
STYLE = """<style>
text { font: 14px system-ui, sans-serif } polyline { fill: none; stroke-width: 2 }
text:not([class]), .title { fill: #5f6670 } .grid { stroke: #dfe3e8 }
.c0 { stroke: #1f6feb } .f0 { fill: #1f6feb } .c1 { stroke: #c2410c } .f1 { fill: #c2410c }
@media (prefers-color-scheme: dark) {
  text:not([class]), .title { fill: #9aa3ad } .grid { stroke: #30353c } }
</style>"""

# ---- what is asked for, and who is still to be measured ---------------------------------------


def main() -> None:
    """Train and measure each contender in turn, and print what came out."""
    options, overrides = _parser().parse_known_args()
    if options.quick:
        vars(options).update(QUICK)
        overrides = [*QUICK_OVERRIDES, *overrides]
    earlier = json.loads(options.resume_from.read_text()) if options.resume_from else {}
    told = machine(pick_device(options.device))
    runs: dict[str, list[dict[str, Any]]] = {}
    asked = {name: _asked(_task(name, 0, options, overrides), told) for name in NAMES}
    for name in NAMES:
        runs[name] = _kept(name, earlier.get(name), asked[name], options.seeds)
    result: dict[str, Any] = {}
    for seed in options.seeds:
        for name in (options.only,) if options.only else NAMES:
            if seed not in [run["seed"] for run in runs[name]]:
                runs[name].append(measure(_task(name, seed, options, overrides)))
                result = report(options, told, asked, runs)
                if options.out:  # after every run, for --resume-from
                    options.out.write_text(json.dumps(result, indent=1) + "\n")
    result = result or report(options, told, asked, runs)
    if options.plot:
        options.plot.write_text(plot(result))
    print(json.dumps(result, indent=1))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Seconds of training until the text controls the picture; other flags are "
        "keys of the config, as for train.py.",
    )
    add = parser.add_argument
    add("--config", default="configs/quickstart.yaml", help="of ours; default %(default)s")
    add("--minutes", type=float, default=15, help="of training, each; default %(default)s")
    add("--every", type=float, default=30, help="seconds of training between two measurements")
    add("--baseline-minutes", type=float, help="of the baseline's training; default: as ours")
    add("--baseline-every", type=float, help="of the baseline; default: as ours")
    add("--num-images", type=int, default=256, help="per measurement; default %(default)s")
    add("--seeds", type=int, nargs="+", default=[0], help="one run each; medians")
    add("--only", choices=NAMES, help="train this one alone")
    add("--device", default="auto", help="default %(default)s")
    add("--baseline-precision", choices=("auto", "float32", "bfloat16"), default="auto",
        help="auto: the faster one, by a few steps")  # fmt: skip
    add("--baseline-gflop", type=float, help="of its UNet, forward; default: those of ours")
    add("--baseline-batch", type=int, default=EXAMPLES_BATCH,
        help="pictures a step; default %(default)s, as the examples")  # fmt: skip
    add("--resume-from", type=Path, metavar="JSON", help="runs that are in there are kept")
    add("--out", type=Path, metavar="JSON", help="written after every run")
    add("--plot", type=Path, metavar="SVG", help="both curves")
    add("--quick", action="store_true", help="a few seconds, to see that all of it works")
    return parser


def _task(name: str, seed: int, options: argparse.Namespace, overrides: Sequence[str]) -> Task:
    shared = {field.name for field in dataclasses.fields(Task)} & vars(options).keys()
    values: dict[str, Any] = {key: getattr(options, key) for key in shared}
    if name == "baseline":
        own = {"minutes": options.baseline_minutes, "every": options.baseline_every}
        values |= {key: value for key, value in own.items() if value is not None}
    return Task(name=name, seed=seed, overrides=list(overrides), **values)  # pyright: ignore[reportArgumentType]


def _asked(task: Task, told: dict[str, Any]) -> dict[str, Any]:
    """What decides a contender's numbers, beside the seed; wrong settings raise here."""
    config = config_file.to_dict(task.load())
    config.pop("seed")
    shared = {"minutes": task.minutes, "every": task.every, "num_images": task.num_images}
    if task.name == "baseline":
        names = ("dataset", "validation", "text_encoder", "network", "sampling")
        config = {key: config[key] for key in names} | {
            "batch_size": config["training"]["batch_size"],
            "precision": task.baseline_precision,
            "gflop": task.baseline_gflop,
        }
    return {**shared, "machine": told, "config": config}


def _kept(
    name: str, earlier: dict[str, Any] | None, asked: dict[str, Any], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Runs of an earlier result that were asked for in the same way."""
    if earlier is None:
        return []
    if earlier["asked"] != json.loads(json.dumps(asked)):
        differs = [key for key in asked if asked[key] != earlier["asked"].get(key)]
        print(f"{name} is measured anew: another {', '.join(differs)}", file=sys.stderr)
        return []
    return [run for run in earlier["runs"] if run["seed"] in seeds]


def measure(task: Task) -> dict[str, Any]:
    """A run of one contender, in a process of its own; ends with its message where it fails."""
    print(f"{task.name}, seed {task.seed}", file=sys.stderr)
    script = Path(__file__).with_name("_contenders.py")
    command = [sys.executable, str(script), json.dumps(dataclasses.asdict(task))]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    if ended.returncode:
        sys.exit(f"{task.name} ended with exit code {ended.returncode}")
    return json.loads(ended.stdout)


# ---- what came out ---------------------------------------------------------------------------


def report(
    options: argparse.Namespace,
    told: dict[str, Any],
    asked: dict[str, Any],
    runs: dict[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    """Everything that is printed."""
    measured = {name: _summary(asked[name], runs[name]) for name in NAMES if runs[name]}
    result: dict[str, Any] = {
        "config": options.config,
        "minutes": {name: asked[name]["minutes"] for name in NAMES},
        "num_images": options.num_images,
        "seeds": options.seeds,
        "machine": told,
        **measured,
    }
    if len(measured) == len(NAMES):
        ours, theirs = (measured[name]["seconds_to"] for name in NAMES)
        budget = 60 * asked["baseline"]["minutes"]
        result["ratio"] = {key: ratio(ours[key], theirs[key], budget) for key in ours}
        paces = [measured[name]["pictures_per_s"] for name in NAMES]
        result["pictures_per_s_ratio"] = round(paces[0] / paces[1], 2)
    return result


def _summary(asked: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, Any]:
    each = [{**run, "seconds_to": _seconds_to_all(run["curve"])} for run in runs]
    medians = {
        key: median(inf if value is None else value for value in values)
        for key in map(str, THRESHOLDS)
        for values in [[run["seconds_to"][key] for run in each]]
    }
    return {
        "asked": asked,
        "seconds_to": {k: round(m, 1) if isfinite(m) else None for k, m in medians.items()},
        "pictures_per_s": median(run["pictures_per_s"] for run in each),
        "runs": each,
    }


def _seconds_to_all(curve: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    return {str(threshold): seconds_to(threshold, curve) for threshold in THRESHOLDS}


def seconds_to(threshold: float, curve: Sequence[dict[str, Any]]) -> float | None:
    """When the accuracy first reached a threshold; None where it never did.

    Read off the straight line between the two measurements around it.
    """
    points = [(0.0, 0.0), *((point["seconds"], point["accuracy"]) for point in curve)]
    for (before, low), (after, high) in pairwise(points):
        if high >= threshold:
            return round(before + (after - before) * (threshold - low) / (high - low), 1)
    return None


def ratio(ours: float | None, theirs: float | None, budget: float) -> float | dict | None:
    """How many times sooner ours is; a lower bound where the baseline had not got there."""
    if ours is None:
        return None
    if theirs is None:
        return {"at_least": round(budget / ours, 2)}
    return round(theirs / ours, 2)


def plot(result: dict[str, Any]) -> str:
    """An SVG file: accuracy over minutes of training, medians of the seeds."""
    lines = [_line(CALLED[name], result[name]["runs"]) for name in NAMES if name in result]
    title = f"accuracy on {result['num_images']} held-out prompts"
    drawn = chart(lines, "minutes of training", title)
    head, _, rest = drawn.partition("\n")
    body = rest.partition("</svg>")[0]  # without the page's legend, which is HTML
    head = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" width="570" ', 1)
    legend = (
        f'<text class="f{i}" x="{LEFT + 8}" y="{TOP + 16 + 18 * i}">{line.name}</text>\n'
        for i, line in enumerate(lines)
    )
    return f"{head}\n{STYLE}\n{body}{''.join(legend)}</svg>\n"


def _line(name: str, runs: Sequence[dict[str, Any]]) -> Line:
    points = [
        (median(p["seconds"] for p in at) / 60, median(p["accuracy"] for p in at))
        for at in zip(*(run["curve"] for run in runs), strict=False)
    ]
    return Line(name, [(0.0, 0.0), *points])


if __name__ == "__main__":
    main()
