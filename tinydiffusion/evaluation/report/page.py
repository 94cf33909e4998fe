"""Extract what the page of a report shows from its JSON; the page itself is a template."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tinydiffusion.evaluation.report.charts import interval_bar
from tinydiffusion.evaluation.report.curves import Row, digits, once
from tinydiffusion.evaluation.report.illustrations import (
    NUM_SAMPLES,
    NUM_SHOWN,
    Extremes,
    extremes,
    ranking_rows,
)
from tinydiffusion.evaluation.rows import shown_floor, shown_interval, shown_value

TEMPLATES = Path(__file__).parent / "templates"
MAX_LISTED = 16
PROVENANCE = (
    "run", "target", "model_sha256", "weights_sha256", "precision", "device", "prompts_sha256",
)  # fmt: skip


class Shown(NamedTuple):
    """A picture with the text below it; without PNG the text alone."""

    label: str
    png: str = ""
    value: str = ""


class Group(NamedTuple):
    """One end of a ranking."""

    title: str
    note: str
    shown: list[Shown]


class Ranking(NamedTuple):
    """The pictures of a metric's two ends."""

    title: str
    groups: list[Group]


class Opening(NamedTuple):
    """The pictures that the page opens with: single ones, or one that is whole."""

    title: str
    note: str
    shown: Sequence[Shown] = ()
    whole: str = ""


def render(parts: dict[str, Any]) -> str:
    """Fill the template: one document that needs nothing from anywhere. All text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    return environment.get_template("report.html").render(style=style, **parts)


def title_of(found: Row) -> str:
    """Return the name of the run, or else of what was measured."""
    context = found["context"]
    return str(context.get("run") or context.get("target") or "a model")


def facts(found: Row) -> list[str]:
    """List in short what was trained and how it generated its pictures."""
    context, said = found["context"], []
    if "training_seconds" in context:
        minutes = context["training_seconds"] / 60
        said.append(f"{context['pictures_seen']:,} training pictures in {minutes:.1f} minutes")
    if sampling := context.get("sampling"):
        said += [
            f"{sampling['sampler']}, {sampling['steps']} steps",
            f"guidance {sampling['guidance_scale']:g}",
            f"seed {context.get('seed', 0)}",
        ]
    if weights := context.get("weights_sha256"):
        said.append(f"weights {weights[:12]}")
    return said or [str(context.get("kind", ""))]


# ---- pictures --------------------------------------------------------------------------------


def opening(found: Row, grid_png: str) -> Opening:
    """Choose the page's first pictures: the final grid, single samples, or the run's `grid.png`.

    Args:
        found: The report.
        grid_png: The run's grid in base64, empty where there is none.
    """
    if grid := found.get("grid"):
        shown = [Shown(str(each["prompt"]), str(each["png"])) for each in grid]
        return Opening("What the model draws", "The final grid, with its prompts.", shown)
    first = sorted(int(i) for i in found.get("pictures", {}) if int(i) < NUM_SAMPLES)
    if first:
        note = "The first of the pictures that were measured."
        return Opening("Samples", note, [_shown(found, i) for i in first])
    if grid_png:
        return Opening("What the model draws", "The final grid.", whole=grid_png)
    return Opening(
        "Samples", "The report holds no pictures, and no run with a grid lies beside it."
    )


def rankings(found: Row) -> list[Ranking]:
    """Choose the best and the worst pictures, or the right and the wrong ones, of every metric."""
    return [_ranking(found, row) for row in ranking_rows(found["results"])]


def _ranking(found: Row, row: Row) -> Ranking:
    values, ends = set(row["per_picture"].values()) - {None}, extremes(row)
    if values <= {0, 1}:
        return Ranking(f"Right and wrong by {row['name']}", _right_and_wrong(found, row, ends))
    if len(values) == 1:
        note = f"each of the {len(row['per_picture'])} pictures has {digits(values.pop())}"
        return Ranking(f"Best and worst by {row['name']}", [Group("All alike", note, [])])
    groups = [
        Group(title, "", _all_shown(found, ids, row))
        for title, ids in zip(("Best", "Worst"), ends, strict=True)
    ]
    return Ranking(f"Best and worst by {row['name']}", groups)


def _right_and_wrong(found: Row, row: Row, ends: Extremes) -> list[Group]:
    total, groups = len(row["per_picture"]), []
    right = 1 if row["higher_is_better"] else 0
    for title, value, ids in (("Right", right, ends.best), ("Wrong", 1 - right, ends.worst)):
        having = [int(i) for i, v in row["per_picture"].items() if v == value]
        shown = ids or [i for i in having if str(i) in found.get("pictures", {})][:NUM_SHOWN]
        note = f"{len(having) or 'none'} of {total}"
        groups.append(Group(title, note, _all_shown(found, shown)))
    return groups


def _all_shown(found: Row, numbers: Sequence[int], row: Row | None = None) -> list[Shown]:
    """Return the pictures of which the report holds the PNG or the prompt."""
    prompts, pngs = found["context"].get("prompts") or [], found.get("pictures", {})
    return [_shown(found, i, row) for i in numbers if i < len(prompts) or str(i) in pngs]


def _shown(found: Row, number: int, row: Row | None = None) -> Shown:
    prompts = found["context"].get("prompts") or []
    label = str(prompts[number]) if number < len(prompts) else f"picture {number}"
    value = "" if row is None else digits(row["per_picture"][str(number)])
    return Shown(label, str(found.get("pictures", {}).get(str(number), "")), value)


# ---- numbers ---------------------------------------------------------------------------------


def numbers(rows: Sequence[Row]) -> dict[str, Any]:
    """Collect the table of results, and the warnings and failures below it."""
    return {
        "rows": [_number(row) for row in rows],
        "has_floor": any(row["details"].get("floor") is not None for row in rows),
        "warnings": once(warning for row in rows for warning in row["warnings"]),
        "failures": [
            f"{kind}: {row['name']}: {row[kind]}"
            for kind in ("skipped", "error")
            for row in rows
            if kind in row
        ],
    }


def _number(row: Row) -> dict[str, Any]:
    failed = row["value"] is None
    return {
        "name": row["name"],
        "value": shown_value(row),
        "failed": failed,
        "interval": shown_interval(row).replace(" - ", " to "),
        "bar": _bar(row),
        "floor": shown_floor(row),
        "n": f"{row['n']:,}",
        "better": "" if failed else ("higher" if row["higher_is_better"] else "lower"),
    }


def _bar(row: Row) -> str:
    """Draw the interval: on [0, 1] for shares, else from 0 to just above the upper bound."""
    if row["ci95"] is None or row["value"] is None:
        return ""
    value, low, high = map(float, (row["value"], *row["ci95"]))
    ends = (0.0, 1.0) if 0 <= low <= high <= 1 else (min(0.0, low), max(0.0, high) * 1.05)
    return interval_bar(value, (low, high), *ends)


# ---- provenance ------------------------------------------------------------------------------


def provenance(found: Row) -> dict[str, dict[str, str]]:
    """Summarise what the numbers depend on, and add the report's details as JSON text."""
    context = {key: value for key, value in found["context"].items() if key != "prompts"}
    whole = {
        "Everything that was measured, with what": context,
        "Extractor, weights and resize of every number": {
            row["name"]: row["provenance"] for row in found["results"] if row["provenance"]
        },
        "Details of every number": {
            row["name"]: row["details"] for row in found["results"] if row["details"]
        },
    }
    details = {
        title: json.dumps(_shortened(value), indent=1, ensure_ascii=False)
        for title, value in whole.items()
    }
    return {"facts": _in_short(context), "details": details}


def _in_short(context: Row) -> dict[str, str]:
    """Select what a reader looks for first, as far as the report holds it."""
    said = {key: context.get(key) for key in PROVENANCE}
    for source, about in context.get("sources", {}).items():
        parts = {key: about[key] for key in ("path", "n", "shape", "sha256") if key in about}
        said[f"{source} pictures"] = ", ".join(f"{key} {value}" for key, value in parts.items())
    environment = context.get("environment", {})
    said["made with"] = ", ".join(f"{name} {environment[name]}" for name in environment)
    return {key.replace("_", " "): str(value) for key, value in said.items() if value}


def _shortened(value: Any) -> Any:
    """Cut every long list inside a value to its first MAX_LISTED items."""
    if isinstance(value, dict):
        return {key: _shortened(each) for key, each in value.items()}
    if isinstance(value, list) and len(value) > MAX_LISTED:
        return [*value[:MAX_LISTED], f"... {len(value) - MAX_LISTED} more"]
    return value
