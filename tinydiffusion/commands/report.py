"""`tinydiffusion report`: a report's JSON in, one self-contained HTML page out."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tinydiffusion.commands._illustrations import NUM_SAMPLES, extremes, ranking_rows
from tinydiffusion.commands._page import page, picture, section, table, text
from tinydiffusion.commands._rows import read_report, shown_floor, shown_interval, shown_value
from tinydiffusion.commands._svg import Line, chart, interval_bar
from tinydiffusion.config import ConfigError
from tinydiffusion.durable import replace_file

METRICS = "metrics.jsonl"
MAX_LISTED = 16
UNDRAWN = {
    "pictures_seen", "progress", "seconds", "data_wait", "learning_rate", "skipped_steps",
    "loss_spikes", "rollbacks",
}  # fmt: skip
DISTANCES = ("fid", "fd_dinov2", "fid_clean", "fid_pt", "pixel_fd", "kid", "cmmd")
ALIGNMENTS = ("clip_score", "scene_accuracy", "retrieval@1")
Row = dict[str, Any]

console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def report(file: Path, *, run: Path | None, out: Path) -> int:
    """0 once the page is written.

    Raises:
        ValueError: the report cannot be read, or the run has no curves.
    """
    found = read_report(file)
    run = run if run is not None else _run_of(found)
    content = page(f"tinydiffusion report of {_title(found)}", _sections(found, _curves(run)))
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, content.encode(errors="replace"))
    console.print(f"page in {out}")
    return 0


def _sections(found: Row, curves: Sequence[Row]) -> Iterable[str]:
    rows = found["results"]
    yield _head(found)
    yield section("Numbers", _numbers(rows), _warnings(rows))
    yield section("Guidance", _sweep(found.get("sweep", [])))
    yield section("Training", _training(curves))
    yield from _best_and_worst(found)
    yield section("Figures", *(_figure(n, png) for n, png in found.get("figures", {}).items()))
    yield section("Samples", _samples(found))
    yield section("How these numbers were made", _provenance(found))


def _title(found: Row) -> str:
    context = found["context"]
    return str(context.get("target") or context.get("run") or "a model")


def _head(found: Row) -> str:
    context = found["context"]
    said = [context.get("kind"), *_sampling(context)]
    if weights := context.get("weights_sha256"):
        said.append(f"weights {weights[:12]}")
    line = ", ".join(text(each) for each in said if each)
    return f'<h1>{text(_title(found))}</h1>\n<p class="soft">{line}</p>'


def _sampling(context: Row) -> list[str]:
    sampling = context.get("sampling")
    if not sampling:
        return []
    return [
        f"{sampling['sampler']}, {sampling['steps']} steps",
        f"guidance {sampling['guidance_scale']:g}",
        f"seed {context.get('seed', 0)}",
    ]


# ---- numbers ---------------------------------------------------------------------------------


def _numbers(rows: Sequence[Row]) -> str:
    head = ["result", "value", "95 % interval", "", "floor", "n", "better"]
    cells = [
        [
            text(row["name"]), _value(row), text(shown_interval(row).replace(" - ", " to ")),
            _bar(row), text(shown_floor(row)), text(row["n"]),
            "" if row["value"] is None else ("higher" if row["higher_is_better"] else "lower"),
        ]
        for row in rows
    ]  # fmt: skip
    note = ""
    if any(row["details"].get("floor") is not None for row in rows):
        note = (
            '<p class="soft">The floor is the distance between two halves of the reference: what '
            "perfect pictures would reach at that size. The number beside it is the distance of "
            "the measured pictures at about the same size; only these two compare.</p>"
        )
    return table(head, cells, numbers=(1, 5)) + note


def _value(row: Row) -> str:
    shown = text(shown_value(row))
    return f'<span class="bad">{shown}</span>' if row["value"] is None else f"<b>{shown}</b>"


def _bar(row: Row) -> str:
    """The interval drawn: shares on [0, 1], others from 0 to twice the value."""
    if row["ci95"] is None or row["value"] is None:
        return ""
    value, low, high = map(float, (row["value"], *row["ci95"]))
    ends = (0.0, 1.0) if 0 <= low <= high <= 1 else (min(0.0, low), max(0.0, high) * 1.05)
    return interval_bar(value, (low, high), *ends)


def _warnings(rows: Sequence[Row]) -> str:
    lines = [
        f'<li class="warn">{text(w)}</li>' for w in _once(w for r in rows for w in r["warnings"])
    ]
    for kind in ("skipped", "error"):
        lines += [
            f'<li class="bad">{kind}: {text(row["name"])}: {text(row[kind])}</li>'
            for row in rows
            if kind in row
        ]
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def _once(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))


# ---- curves ----------------------------------------------------------------------------------


def _sweep(sweep: Sequence[Row]) -> str:
    """Every distance against every alignment, a point per guidance scale; then the numbers."""
    if not sweep:
        return ""
    names = _once(row["name"] for point in sweep for row in point["results"])
    values = {name: [(p["guidance_scale"], _value_of(p, name)) for p in sweep] for name in names}
    far = [name for name in names if name.partition("[")[0] in DISTANCES]
    near = [name for name in names if name.partition("[")[0] in ALIGNMENTS]
    charts = [_trade_off(values, x, y) for y in far for x in near]
    cells = [
        [text(f"{scale:g}"), *(text(_digits(dict(values[name])[scale])) for name in names)]
        for scale in (point["guidance_scale"] for point in sweep)
    ]
    head = ["guidance scale", *map(text, names)]
    charts = [each for each in charts if each]
    drawn = f'<div class="two">{"".join(f"<div>{c}</div>" for c in charts)}</div>' if charts else ""
    return drawn + table(head, cells, numbers=range(len(head)))


def _value_of(point: Row, name: str) -> float | int | None:
    return next((row["value"] for row in point["results"] if row["name"] == name), None)


def _trade_off(values: dict[str, Any], x: str, y: str) -> str:
    pairs = zip(values[x], values[y], strict=True)
    points = [(s, a, d) for (s, a), (_, d) in pairs if a is not None and d is not None]
    line = Line(y, [(a, d) for _, a, d in points], [f"{scale:g}" for scale, _, _ in points])
    return chart([line], x, y)


def _digits(value: float | int | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _run_of(found: Row) -> Path | None:
    """The run that the model lies in, if its curves are there."""
    context = found["context"]
    place = context.get("run") or Path(context.get("target", "")).parent
    return Path(place) if (Path(place) / METRICS).is_file() else None


def _curves(run: Path | None) -> list[Row]:
    if run is None:
        return []
    try:
        lines = (run / METRICS).read_text(encoding="utf-8").splitlines()
        return [row for row in map(json.loads, lines) if isinstance(row, dict)]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{run} has no curves: cannot read {METRICS}: {error}") from error


def _training(rows: Sequence[Row]) -> str:
    """A chart per number that training has logged, losses together."""
    names = _once(k for row in rows for k, v in row.items() if isinstance(v, int | float))
    names = [name for name in names if name not in UNDRAWN]
    losses = [name for name in names if name.endswith("loss")]
    groups = [losses, *([name] for name in names if name not in losses)]
    charts = []
    for group in filter(None, groups):
        lines = [Line(name, _points(rows, name)) for name in group]
        log = all(y > 0 for line in lines for _, y in line.points)
        title = "loss" if group == losses else group[0]
        if any(len(line.points) > 1 for line in lines):
            drawn = chart(lines, "pictures seen", title, log_y=log and title == "loss")
            charts.append(f"<div>{drawn}</div>")
    return f'<div class="two">{"".join(charts)}</div>' if charts else ""


def _points(rows: Sequence[Row], name: str) -> list[tuple[float, float]]:
    known = (row for row in rows if row.get(name) is not None)
    return [(float(row["pictures_seen"]), float(row[name])) for row in known]


# ---- pictures --------------------------------------------------------------------------------


def _best_and_worst(found: Row) -> Iterable[str]:
    for row in ranking_rows(found["results"]):
        best, worst = extremes(row)
        parts = [
            f"<h3>{title}</h3>{_pictures(found, ids, row)}"
            for title, ids in (("Best", best), ("Worst", worst))
        ]
        yield section(f"Prompts by {row['name']}", *parts)


def _samples(found: Row) -> str:
    first = [int(i) for i in found.get("pictures", {}) if int(i) < NUM_SAMPLES]
    return _pictures(found, sorted(first), None) if first else ""


def _pictures(found: Row, ids: Sequence[int], row: Row | None) -> str:
    prompts, pngs = found["context"].get("prompts"), found.get("pictures", {})
    shown = []
    for i in ids:
        words = [] if prompts is None else [prompts[i]]
        if row is not None:
            words.insert(0, _digits(row["per_picture"][str(i)]))
        label = ": ".join(words) or f"#{i}"
        shown.append(picture(pngs[str(i)], label) if str(i) in pngs else f"<p>{text(label)}</p>")
    return f'<div class="pictures">{"".join(shown)}</div>'


def _figure(name: str, png: str) -> str:
    source = f"data:image/png;base64,{text(png)}"
    return f'<h3>{text(name)}</h3><img class="figure" src="{source}" alt="{text(name)}">'


# ---- provenance ------------------------------------------------------------------------------


def _provenance(found: Row) -> str:
    context = {key: value for key, value in found["context"].items() if key != "prompts"}
    rows = {row["name"]: row["provenance"] for row in found["results"] if row["provenance"]}
    details = {row["name"]: row["details"] for row in found["results"] if row["details"]}
    return "\n".join(
        f"<details{state}><summary>{title}</summary><pre>{text(_pretty(value))}</pre></details>"
        for title, value, state in (
            ("What was measured, with what", context, " open"),
            ("Extractor, weights and resize of every number", rows, ""),
            ("Details of every number", details, ""),
        )
    )


def _pretty(value: Any) -> str:
    return json.dumps(_shortened(value), indent=1, ensure_ascii=False)


def _shortened(value: Any) -> Any:
    """The value with the first few items of every long list."""
    if isinstance(value, dict):
        return {key: _shortened(each) for key, each in value.items()}
    if isinstance(value, list) and len(value) > MAX_LISTED:
        return [*value[:MAX_LISTED], f"... {len(value) - MAX_LISTED} more"]
    return value
