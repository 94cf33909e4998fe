"""`tinydiffusion report`: a report's JSON in, one self-contained HTML page out."""

import base64
import io
from pathlib import Path

from PIL import Image
from rich.console import Console

from tinydiffusion.config import ConfigError
from tinydiffusion.evaluation.report import page
from tinydiffusion.evaluation.report.curves import (
    METRICS,
    Curves,
    Row,
    guidance_sweep,
    training_curves,
)
from tinydiffusion.evaluation.report.film import UNREADABLE, Film, film_of
from tinydiffusion.evaluation.rows import read_report
from tinydiffusion.pictures.decode import quiet
from tinydiffusion.runtime.durable import replace_file

GRID = "grid.png"
MAX_GRID = 1600  # pixels

console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def report(file: Path, *, run: Path | None, out: Path) -> int:
    """Write the page of a report and return 0.

    Args:
        file: The report.
        run: The run whose film and curves are shown; None = the report's own run.
        out: The page.

    Raises:
        ValueError: the report cannot be read, or `run` is not the folder of a run.
    """
    found = read_report(file)
    if run is not None and not (run / METRICS).is_file():
        raise ConfigError(f"--run {run} has no curves: there is no {METRICS}")
    run = run or _run_of(found, file)
    if run is None and "run" in found["context"]:
        console.print(f"no film and no curves: {found['context']['run']} is not there; see --run")
    content = page.render(
        {
            "title": page.title_of(found),
            "facts": page.facts(found),
            "opening": page.opening(found, _grid(run)),
            "rankings": page.rankings(found),
            "film": Film([], [], []) if run is None else film_of(run),
            "figures": list(found.get("figures", {}).items()),
            "numbers": page.numbers(found["results"]),
            "sweep": guidance_sweep(found.get("sweep", [])),
            "curves": Curves([]) if run is None else training_curves(run),
            "provenance": page.provenance(found),
        }
    )
    if run is not None:
        console.print(f"grid, film and curves are those of {run}")
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, content.encode(errors="replace"))
    console.print(f"page in {out}")
    return 0


def _run_of(found: Row, file: Path) -> Path | None:
    """Find the report's run: beside the report, at the path it names, or around its model."""
    context = found["context"]
    places = [file.parent, Path(context["run"])] if "run" in context else []
    if context.get("kind") == "model":
        places.append(Path(context["target"]).parent)
    return next((place for place in places if (place / METRICS).is_file()), None)


def _grid(run: Path | None) -> str:
    """Read the run's `grid.png` as base64; empty where it is missing or cannot be read."""
    if run is None:
        return ""
    try:
        with quiet(), Image.open(run / GRID) as image:
            picture = image.convert("RGB")
    except UNREADABLE:
        return ""
    picture.thumbnail((MAX_GRID, MAX_GRID), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    picture.save(content, format="PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode()
