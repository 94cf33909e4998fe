"""`tinydiffusion compare`: which differences between two reports are larger than noise."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.table import Table

from tinydiffusion.config import ConfigError
from tinydiffusion.evaluation.rows import read_report, stdout_console
from tinydiffusion.protocols import SOURCES
from tinydiffusion.runtime.durable import replace_file

SCHEMA = "tinydiffusion.eval-comparison/1"
NUM_RESAMPLES = 10_000
MIN_PROMPTS = 8
CHUNK = 200  # resamples at a time
UNCOMPARED = {"packages", "assumed_extractor", "seed", "needs"}
UNSAID = object()  # stands for an entry that a report lacks
Row = dict[str, Any]


def compare(a: Path, b: Path, *, seed: int, json_file: Path | None) -> int:
    """Print the comparison of two reports, write it to `json_file` if given, and return 0.

    Raises:
        ConfigError: the reports have no comparable row in common.
    """
    reports = [read_report(file) for file in (a, b)]
    rows = compare_reports(*reports, seed=seed)
    if compared := any("difference" in row for row in rows):
        _print(rows, str(a), str(b))
    if json_file is not None:
        found = {"schema": SCHEMA, "a": str(a), "b": str(b), "seed": seed, "results": rows}
        text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        json_file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(json_file, text.encode())
    if not compared:
        reasons = "; ".join(f"{row['name']}: {row['refused']}" for row in rows)
        raise ConfigError(f"{a} and {b} do not compare: {reasons or 'no metric in common'}")
    return 0


def compare_reports(a: Row, b: Row, *, seed: int = 0) -> list[Row]:
    """Compare every metric of two reports: the difference B - A with its interval.

    Where both have values per picture, the interval is that of a paired bootstrap over prompts:
    the same resample of prompts is drawn for both. Otherwise it is computed from the two rows' own
    intervals, taken as independent, which is wider than the truth for equal prompts and seeds.

    Args:
        a: A report.
        b: Another report.
        seed: Seed of the bootstrap.

    Returns:
        One row per metric; where it cannot be compared, the row has the reason as `refused`.
    """
    first, second = ({row["name"]: row for row in report["results"]} for report in (a, b))
    results = []
    for name in dict.fromkeys([*first, *second]):
        if name not in first or name not in second:
            results.append(
                {"name": name, "refused": f"only {'A' if name in first else 'B'} has it"}
            )
        elif reason := _refusal(a["context"], b["context"], first[name], second[name]):
            results.append({"name": name, "refused": reason})
        else:
            prompts = a["context"].get("prompts")
            results.append({"name": name, **_difference(first[name], second[name], prompts, seed)})
    return results


def _refusal(context_a: Row, context_b: Row, a: Row, b: Row) -> str | None:
    """Return the reason why two rows are not comparable; None where they are.

    A condition that is missing from both reports counts as a difference.
    """
    for side, row in (("A", a), ("B", b)):
        if row["value"] is None:
            return f"{side} has no value ({row.get('skipped') or row.get('error')})"
    one, other = _conditions(context_a, a), _conditions(context_b, b)
    for name in dict.fromkeys([*one, *other]):
        values = one.get(name), other.get(name)
        silent = [side for side, value in zip("AB", values, strict=True) if value is UNSAID]
        if silent:
            who = "neither report says" if len(silent) == 2 else f"{silent[0]} does not say"
            return f"{who} its {name}"
        if values[0] != values[1]:
            return f"different {name}: {_shown(values[0])} and {_shown(values[1])}"
    return None


def _conditions(context: Row, row: Row) -> Row:
    """Collect, by name, the conditions besides the model that a number depends on."""
    made_by = row["provenance"]
    conditions = {
        "evaluator": row["evaluator"],
        "sources (needs)": made_by.get("needs", UNSAID),
        "n": row["n"],
        "prompts_sha256": context.get("prompts_sha256", UNSAID),
        "options": _options(context, row),
    }
    for source in SOURCES:
        if source in made_by.get("needs", ()):
            about = context.get("sources", {}).get(source, {})
            if source != "generated":
                conditions[source] = about.get("sha256", UNSAID)
            resize = about.get("resize") if about else UNSAID
            conditions[f"resize of the pictures ({source})"] = resize
    return conditions | {k: v for k, v in made_by.items() if k not in UNCOMPARED}


def _options(context: Row, row: Row) -> Any:
    """Return the metric's options without the path of its weights: their content is compared."""
    if "options" not in context:
        return UNSAID
    options = context["options"].get(row["evaluator"], {})
    return {key: value for key, value in options.items() if key != "weights"}


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _difference(a: Row, b: Row, prompts: Sequence[str] | None, seed: int) -> Row:
    difference = b["value"] - a["value"]
    row = {
        "a": a["value"],
        "b": b["value"],
        "difference": difference,
        "higher_is_better": a["higher_is_better"],
    }
    interval = None
    if a["per_picture"] and a["per_picture"].keys() == b["per_picture"].keys():
        interval = _paired(a["per_picture"], b["per_picture"], prompts, seed)
    if interval is not None:
        method = f"paired bootstrap over prompts, {NUM_RESAMPLES} resamples"
    elif a["ci95"] and b["ci95"]:
        interval = _independent(difference, a["ci95"], b["ci95"])
        method = "the rows' own intervals"
    else:
        return {**row, "ci95": None, "method": "none: no interval is known", "verdict": "unknown"}
    noise = interval[0] <= 0 <= interval[1]
    better = (difference > 0) == a["higher_is_better"]
    verdict = "noise" if noise else ("B is better" if better else "A is better")
    return {**row, "ci95": list(interval), "method": method, "verdict": verdict}


def _paired(
    a: Mapping[str, float], b: Mapping[str, float], prompts: Sequence[str] | None, seed: int
) -> tuple[float, float] | None:
    """Compute the 95 % interval of the mean difference by resampling prompts with their pictures.

    Returns:
        The interval; None for fewer than MIN_PROMPTS different prompts: one alone would have an
        interval of no width, and a few one that is too narrow.
    """
    groups: dict[str, list[float]] = {}
    for number, value in a.items():
        prompt = number if prompts is None else prompts[int(number)]
        groups.setdefault(prompt, []).append(b[number] - value)
    if len(groups) < MIN_PROMPTS:
        return None
    totals = np.array([sum(group) for group in groups.values()])
    counts = np.array([float(len(group)) for group in groups.values()])
    means = bootstrap_means(totals, counts, seed)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def bootstrap_means(
    totals: Float[np.ndarray, "N"], counts: Float[np.ndarray, "N"], seed: int
) -> Float[np.ndarray, "R"]:
    """Compute means over NUM_RESAMPLES resamples of N groups, given each group's sum and size."""
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(NUM_RESAMPLES // CHUNK):
        drawn = generator.integers(len(totals), size=(CHUNK, len(totals)))
        means.append(totals[drawn].sum(1) / counts[drawn].sum(1))
    return np.concatenate(means)


def _independent(difference: float, a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    half = math.hypot(*((high - low) / 2 for low, high in (a, b)))
    return difference - half, difference + half


def _print(rows: Sequence[Row], a: str, b: str) -> None:
    table = Table(title=f"A {a}\nB {b}", title_justify="left")
    table.add_column("result")
    for column in ("A", "B", "B - A", "95 % interval"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for row in rows:
        if "refused" in row:
            table.add_row(row["name"], "", "", "", "", "not compared")
            continue
        interval = "" if row["ci95"] is None else "{:.3g} - {:.3g}".format(*row["ci95"])
        values = (f"{row['a']:.4g}", f"{row['b']:.4g}", f"{row['difference']:+.3g}")
        table.add_row(row["name"], *values, interval, row["verdict"])
    console = stdout_console()
    console.print(table)
    for row in rows:
        if "refused" in row:
            console.print(f"not compared: {row['name']}: {row['refused']}", soft_wrap=True)
    real = [row["name"] for row in rows if row.get("verdict", "").endswith("better")]
    console.print(f"larger than noise: {', '.join(real) or 'none'}", soft_wrap=True)
