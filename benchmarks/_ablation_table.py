"""Means, paired differences and the table of ablations.py."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch

from tinydiffusion.metrics.statistics import student_interval

BASE = "base"
COUNTED = ("pictures_seen", "pictures_per_second")  # beside the metrics

Row = dict[str, Any]
"""A variant: why, overrides, runs."""


def summary(rows: Mapping[str, Row], metrics: Sequence[str]) -> dict[str, Row]:
    """The rows with `mean` of their seeds, and `difference` to the base's, by seed.

    The interval is Student's, over seeds: it holds where differences of seeds are about normal.
    A failed run has no numbers; a variant's mean is that of its other seeds.
    """
    base = _by_seed(rows[BASE])
    return {
        name: {
            **row,
            "mean": {key: _mean(row, key) for key in (*metrics, *COUNTED)},
            "difference": {key: _difference(_by_seed(row), base, key) for key in metrics},
        }
        for name, row in rows.items()
    }


def _by_seed(row: Row) -> dict[int, Row]:
    return {run["seed"]: run for run in row["runs"] if "failed" not in run}


def _mean(row: Row, key: str) -> float | None:
    values = [run[key] for run in _by_seed(row).values() if run[key] is not None]
    return fmean(values) if values else None


def _difference(runs: dict[int, Row], base: dict[int, Row], key: str) -> Row | None:
    """Of the seeds that both have: mean, 95 % interval, and each."""
    each = {
        seed: run[key] - base[seed][key]
        for seed, run in runs.items()
        if seed in base and None not in (run[key], base[seed][key])
    }
    if not each:
        return None
    interval = student_interval(torch.tensor([*each.values()], dtype=torch.float64))
    return {
        "mean": fmean(each.values()),
        "ci95": None if interval is None else list(interval),
        "seeds": each,
    }


# ---- the table -------------------------------------------------------------------------------


def table(result: Mapping[str, Any]) -> str:
    """Markdown: the command, what the numbers are, and a line for every variant, best first."""
    metrics, rows = result["metrics"], result["variants"]
    first = metrics[0]
    heads = ["variant", "what is other", *map(_short, metrics), "each seed",
             f"{_short(first)}, difference to the base", "pictures"]  # fmt: skip
    lines = [heads, ["---"] * len(heads)]
    lines += [_line(name, rows[name], metrics) for name in _sorted(rows, first)]
    told = [
        f"`{result['command']}`",
        "",
        f"{_told(result)} In brackets the 95 % interval of the difference, by Student's t over the "
        "seeds, paired: with three seeds it is wide, and of many variants one in twenty leaves it "
        "by chance.",
        "",
        *("| " + " | ".join(cells) + " |" for cells in lines),
    ]
    return "\n".join(told) + "\n"


def _sorted(rows: Mapping[str, Row], metric: str) -> list[str]:
    """Names, the best mean difference first, the failed last."""

    def place(name: str) -> tuple[bool, float]:
        difference = rows[name]["difference"][metric]
        return difference is None, 0.0 if difference is None else -difference["mean"]

    return sorted(rows, key=place)


def _line(name: str, row: Row, metrics: Sequence[str]) -> list[str]:
    reasons = [f"seed {run['seed']} failed: {run['failed']}" for run in row["runs"]
               if "failed" in run]  # fmt: skip
    means = [_number(row["mean"][key]) for key in metrics]
    seeds = " ".join(_number(run[metrics[0]]) for run in _by_seed(row).values())
    difference = "" if name == BASE else _shown(row["difference"][metrics[0]])
    seen = row["mean"]["pictures_seen"]
    what = "; ".join([row["why"], *reasons]).replace("|", "/")
    return [name, what, *means, seeds, difference, "" if seen is None else f"{seen:,.0f}"]


def _shown(difference: Row | None) -> str:
    if difference is None:
        return ""
    if difference["ci95"] is None:
        return f"{difference['mean']:+.3f}"
    low, high = difference["ci95"]
    return f"{difference['mean']:+.3f} ({low:+.3f} to {high:+.3f})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _short(metric: str) -> str:
    return metric.rpartition("/")[2].replace("_", " ")


def _told(result: Mapping[str, Any]) -> str:
    seeds = ", ".join(map(str, result["seeds"]))
    return (
        f"Means of seeds {seeds}; {result['minutes']:g} minutes of training each, "
        f"{result['num_images']} pictures to measure with."
    )
