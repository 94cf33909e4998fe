"""The report: its rows, its file, and the table that is printed of it."""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tinydiffusion import __version__
from tinydiffusion.protocols import Score
from tinydiffusion.runtime.durable import replace_file

SCHEMA = "tinydiffusion.eval/1"
ROW_KEYS = ("name", "value", "n", "ci95", "higher_is_better", "details", "warnings", "per_picture",
            "evaluator", "provenance")  # fmt: skip


def report_row(score: Score, evaluator: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Make a JSON-able row of a report; numbers that are not finite become None and are named."""
    row = score._asdict()
    row["ci95"] = None if score.ci95 is None else list(score.ci95)
    row["per_picture"] = {str(key): value for key, value in score.per_picture.items()}
    row |= {"evaluator": evaluator, "provenance": dict(provenance)}
    lost = [key for key, value in row.items() if not _is_finite(value)]
    row["warnings"] = [
        *score.warnings,
        *(f"{score.name}: {key} is not finite" for key in lost if key != "value"),
    ]
    row = {key: finite(value) for key, value in row.items()}
    row["ci95"] = None if "ci95" in lost else row["ci95"]
    return {**row, "error": f"the value is {score.value}"} if "value" in lost else row


def finite(value: Any) -> Any:
    """Replace tuples inside a value by lists, and every NaN and infinity by None."""
    if isinstance(value, Mapping):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_finite(value: Any) -> bool:
    """Return whether a value has no NaN and no infinity inside."""
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def write_report(
    file: Path,
    rows: Sequence[Mapping[str, Any]],
    context: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write the report as JSON; a reader sees the whole of it, or the report before.

    Args:
        file: Path of the report.
        rows: The `results` of the report.
        context: What was measured, how.
        more: Further sections.
    """
    report = {
        "schema": SCHEMA,
        "context": {**context, "environment": environment()},
        "results": list(rows),
        **(more or {}),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(finite(report), indent=1, ensure_ascii=False, allow_nan=False)
    replace_file(file, (text + "\n").encode(errors="backslashreplace"))


def read_report(file: Path) -> dict[str, Any]:
    """Read a report that `write_report` wrote.

    Raises:
        ValueError: there is no such file, or it is no report.
    """
    try:
        report = json.loads(file.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read the report {file}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{file} is no report: not valid JSON ({error})") from error
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise ValueError(f"{file} is no report: its schema is not {SCHEMA!r}")
    _check_report(file, report)
    return report


def _check_report(file: Path, report: Mapping[str, Any]) -> None:
    """Raise ValueError where parts are missing that every report has."""
    rows = report.get("results")
    if not isinstance(report.get("context"), dict) or not isinstance(rows, list):
        raise ValueError(f"{file} is no report: its context or its results are missing")
    paths = [report["context"].get(key, "") for key in ("run", "target")]
    if not all(isinstance(path, str) for path in paths):
        raise ValueError(f"{file} is no report: the run or the target of its context is no text")
    for number, row in enumerate(rows, 1):
        if lost := [key for key in ROW_KEYS if not isinstance(row, dict) or key not in row]:
            raise ValueError(f"{file}: row {number} of its results lacks {', '.join(lost)}")
        values = row["per_picture"].values() if isinstance(row["per_picture"], dict) else [""]
        if not all(isinstance(value, int | float | None) for value in values):
            raise ValueError(f"{file}: row {number} has values per picture that are no numbers")


def environment() -> dict[str, Any]:
    """Return versions and machine, for the report."""
    packages = ("torch", "diffusers", "open_clip_torch", "pillow", "numpy")
    return {
        "tinydiffusion": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        **{package: version(package) for package in packages},
    }


def print_table(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Print value, interval, floor and n of every row, every warning once, then what has failed."""
    table = Table(title=title, title_justify="left")
    table.add_column("result", no_wrap=True)
    floors = any(row["details"].get("floor") is not None for row in rows)
    columns = ("value", "95 % interval", *(["floor"] if floors else []), "n")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        floor = [shown_floor(row)] if floors else []
        table.add_row(row["name"], shown_value(row), shown_interval(row), *floor, str(row["n"]))
    console = stdout_console()
    console.print(table)
    for warning in dict.fromkeys(w for row in rows for w in row["warnings"]):
        console.print(f"warning: {warning}", soft_wrap=True)
    for kind in ("skipped", "error"):
        for row in rows:
            if kind in row:
                console.print(f"{kind}: {row['name']}: {row[kind]}", soft_wrap=True)


def print_sweep(sweep: Sequence[Mapping[str, Any]]) -> None:
    """Print every value at every guidance scale."""
    table = Table(title="guidance scale", title_justify="left")
    table.add_column("result", no_wrap=True)
    for point in sweep:
        table.add_column(f"{point['guidance_scale']:g}", justify="right")
    for rows in zip(*(point["results"] for point in sweep), strict=True):
        table.add_row(rows[0]["name"], *map(shown_value, rows))
    stdout_console().print(table)


def stdout_console() -> Console:
    """Make a console on standard output; without a terminal it is wide enough for all columns."""
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=120)


def shown_value(row: Mapping[str, Any]) -> str:
    """Format the value to four digits; without a value, return "skipped" or "failed"."""
    if row["value"] is None:
        return "skipped" if "skipped" in row else "failed"
    return f"{row['value']:.4g}"


def shown_interval(row: Mapping[str, Any]) -> str:
    """Format the 95 % interval; empty where there is none."""
    return "" if row["ci95"] is None else "{:.4g} - {:.4g}".format(*row["ci95"])


def shown_floor(row: Mapping[str, Any]) -> str:
    """Format the floor, which perfect pictures would reach, with the value comparable to it."""
    floor, value = row["details"].get("floor"), row["details"].get("at_floor_n")
    if floor is None:
        return ""
    return f"{floor:.4g}" if value is None else f"{floor:.4g} (here {value:.4g})"
