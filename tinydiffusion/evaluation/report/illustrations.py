"""The pictures that a report holds, as PNG in base64."""

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from tinydiffusion.abilities import Illustrated
from tinydiffusion.evaluation.measurement import Measurement
from tinydiffusion.evaluation.sources import Pictures
from tinydiffusion.pictures.png import to_pil

NUM_SHOWN = 8  # best, and as many worst, per metric
NUM_SAMPLES = 32
MAX_SIDE = 128
MAX_FIGURE = 1600


class Extremes(NamedTuple):
    """Ids of pictures at both ends of a metric, the best and the worst first.

    No picture of one end has the value of the other end: where all values are equal, both are
    empty.
    """

    best: list[int]
    worst: list[int]


def illustrations(
    measurement: Measurement,
    generated: Pictures | None = None,
    rows: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Draw the evaluators' `figures`, and the `pictures` that rows refer to by id."""
    figures: dict[str, str] = {}
    for name, evaluator in measurement.evaluators.items():
        if isinstance(evaluator, Illustrated) and name not in measurement.failures:
            with measurement.isolated(name):
                figures |= {k: _png(image, MAX_FIGURE) for k, image in evaluator.figures().items()}
    shown = {} if generated is None else _thumbnails(generated, rows)
    return {"figures": figures, "pictures": shown}


def labelled(images: UInt8[Tensor, "N C H W"], prompts: Sequence[str]) -> list[dict[str, str]]:
    """Pair pictures with their prompts, as the section `grid` of a report holds them."""
    pairs = zip(images, prompts, strict=True)
    return [{"prompt": prompt, "png": _png(image, MAX_SIDE)} for image, prompt in pairs]


def ranking_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each evaluator's first row with values per picture; later rows are parts of it."""
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row.get("per_picture"):
            first.setdefault(row["evaluator"], row)
    return list(first.values())


def extremes(row: dict[str, Any]) -> Extremes:
    """Rank the pictures of a row by their values, and take at most NUM_SHOWN of each end."""
    sign = -1 if row["higher_is_better"] else 1
    values = {int(i): v for i, v in row["per_picture"].items() if v is not None}
    ranked = sorted(values, key=lambda i: (sign * values[i], i))
    if not ranked:
        return Extremes([], [])
    best, worst = values[ranked[0]], values[ranked[-1]]
    half = len(ranked) // 2
    upper, lower = ranked[:half], sorted(ranked[half:], key=lambda i: (-sign * values[i], i))
    return Extremes(
        [i for i in upper[:NUM_SHOWN] if values[i] != worst],
        [i for i in lower[:NUM_SHOWN] if values[i] != best],
    )


def _thumbnails(generated: Pictures, rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Draw the first pictures, and the best and worst by every row with values per picture."""
    first = list(range(min(NUM_SAMPLES, len(generated))))
    named = {i for row in ranking_rows(rows) for ids in extremes(row) for i in ids}
    batch = generated.read([*first, *sorted(named.difference(first))])
    pairs = zip(batch["id"].tolist(), batch["image"], strict=True)
    return {str(i): _png(image, MAX_SIDE) for i, image in pairs}


def _png(image: UInt8[Tensor, "3 H W"], side: int) -> str:
    picture = to_pil(image)
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    picture.save(content, format="PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode()
