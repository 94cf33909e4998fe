"""The charts of a report: what training has logged, and quality against guidance."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinydiffusion.evaluation.report.charts import Line, chart

METRICS = "metrics.jsonl"
UNDRAWN = {
    "pictures_seen", "progress", "seconds", "data_wait", "learning_rate", "skipped_steps",
    "loss_spikes", "rollbacks",
}  # fmt: skip
DISTANCES = ("fid", "fd_dinov2", "fid_clean", "fid_pt", "pixel_fd", "kid", "cmmd")
ALIGNMENTS = ("clip_score", "scene_accuracy", "retrieval@1")
Row = dict[str, Any]


class Curves(NamedTuple):
    """Charts as SVG, and a note on what is missing."""

    charts: list[str]
    note: str = ""


class Sweep(NamedTuple):
    """Values at several guidance scales: charts as SVG, and a table."""

    charts: list[str]
    head: list[str]
    rows: list[list[str]]


def training_curves(run: Path) -> Curves:
    """Draw a chart of each number that a run has logged, losses together."""
    try:
        lines = (run / METRICS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return Curves([], f"{run} has no curves: cannot read {METRICS}: {error}")
    rows, broken = [], 0
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and _is_number(row.get("pictures_seen")):
            rows.append(row)
        else:
            broken += 1
    note = f"{broken} lines of {run / METRICS} cannot be read and are left out" if broken else ""
    return Curves(_charts(rows), note)


def guidance_sweep(sweep: Sequence[Row]) -> Sweep:
    """Draw every distance against every alignment, and list all values, a row per scale."""
    names = once(row["name"] for point in sweep for row in point["results"])
    values = {name: [(p["guidance_scale"], _value_of(p, name)) for p in sweep] for name in names}
    far = [name for name in names if name.partition("[")[0] in DISTANCES]
    near = [name for name in names if name.partition("[")[0] in ALIGNMENTS]
    charts = [_trade_off(values, x, y) for y in far for x in near]
    rows = [
        [f"{scale:g}", *(digits(dict(values[name])[scale]) for name in names)]
        for scale in (point["guidance_scale"] for point in sweep)
    ]
    return Sweep([each for each in charts if each], ["guidance scale", *names], rows)


def digits(value: float | int | None) -> str:
    """Format a number to four digits, and None as an empty string."""
    return "" if value is None else f"{value:.4g}"


def once(items: Iterable[str]) -> list[str]:
    """Return the items in their order, each at its first place only."""
    return list(dict.fromkeys(items))


def _charts(rows: Sequence[Row]) -> list[str]:
    names = once(k for row in rows for k, v in row.items() if _is_number(v) and k not in UNDRAWN)
    losses = [name for name in names if name.endswith("loss")]
    groups = [losses, *([name] for name in names if name not in losses)]
    charts = []
    for group in filter(None, groups):
        lines = [Line(name, _points(rows, name)) for name in group]
        log = group == losses and all(y > 0 for line in lines for _, y in line.points)
        title = "loss" if group == losses else group[0]
        if any(len(line.points) > 1 for line in lines):
            charts.append(chart(lines, "pictures seen", title, log_y=log))
    return charts


def _points(rows: Sequence[Row], name: str) -> list[tuple[float, float]]:
    known = (row for row in rows if _is_number(row.get(name)))
    return [(float(row["pictures_seen"]), float(row[name])) for row in known]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _value_of(point: Row, name: str) -> float | int | None:
    return next((row["value"] for row in point["results"] if row["name"] == name), None)


def _trade_off(values: dict[str, Any], x: str, y: str) -> str:
    pairs = zip(values[x], values[y], strict=True)
    points = [(s, a, d) for (s, a), (_, d) in pairs if a is not None and d is not None]
    line = Line(y, [(a, d) for _, a, d in points], [f"{scale:g}" for scale, _, _ in points])
    return chart([line], x, y)
