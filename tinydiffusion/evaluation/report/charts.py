"""Charts as inline SVG: lines with a legend, colours from the page's style."""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = (
    380,
    250,
)  # about the CSS pixels that a chart has on a phone: letters keep their size
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 34, 44
NUM_TICKS = 5
MAX_LOG_TICKS = 8


class Line(NamedTuple):
    """A line by its name and its points, in the order in which they are joined."""

    name: str
    points: Sequence[tuple[float | int, float | int]]
    labels: Sequence[str] = ()  # beside the points


def chart(lines: Sequence[Line], x: str, y: str, *, log_y: bool = False) -> str:
    """Draw all lines as an SVG element; empty where there is no point.

    Args:
        lines: Lines with their names.
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
        log_y: Whether the vertical axis is logarithmic; values must be above 0.
    """
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    over, up = ([float(value) for value in values] for values in zip(*points, strict=True))
    horizontal = _Axis(min(over), max(over), LEFT, WIDTH - RIGHT)
    vertical = _Axis(min(up), max(up), HEIGHT - BOTTOM, TOP, log=log_y)
    parts = [*_grid(horizontal, vertical), *_titles(x, y)]
    for number, line in enumerate(lines):
        parts += _drawn(line, number % 6, horizontal, vertical)
    label = html.escape(f"{y} over {x}", quote=True)
    svg = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    return "\n".join([svg, *parts, "</svg>", _legend(lines)])


def interval_bar(value: float, ci95: Sequence[float], low: float, high: float) -> str:
    """Draw a value with its interval on the range [low, high], as a small SVG element."""
    span = (high - low) or 1.0
    places = [6 + 108 * (v - low) / span for v in (ci95[0], value, ci95[1])]
    a, at, b = (f"{place:.1f}" for place in places)
    return (
        f'<svg class="bar" viewBox="0 0 120 14" role="img" aria-label="interval">'
        f'<line class="axis" x1="6" y1="7" x2="114" y2="7"/>'
        f'<line class="c0 thick" x1="{a}" y1="7" x2="{b}" y2="7"/>'
        f'<circle class="f0" cx="{at}" cy="7" r="3.5"/></svg>'
    )


class _Axis:
    """A range of values laid on a range of pixels."""

    def __init__(self, low: float, high: float, start: int, end: int, *, log: bool = False) -> None:
        self.log = log
        low, high = (self._scaled(low), self._scaled(high))
        margin = 0.05 * (high - low) or abs(high) or 1.0
        self.low, self.high = low - margin, high + margin
        self.start, self.end = start, end

    def __call__(self, value: float | int) -> float:
        share = (self._scaled(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Choose round values inside the range."""
        if self.log:
            powers = range(math.floor(self.low), math.ceil(self.high) + 1)
            every = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
            inside = [value for value in every if self.low <= math.log10(value) <= self.high]
            tens = [v for v in inside if math.log10(v).is_integer()]
            found = inside if len(inside) <= MAX_LOG_TICKS else tens
            if len(found) > 1:
                return found
        low, high = (10.0**end if self.log else end for end in (self.low, self.high))
        raw = (high - low) / NUM_TICKS
        size = 10.0 ** math.floor(math.log10(raw))
        step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
        first = math.ceil(low / step)
        values = [step * k for k in range(first, math.floor(high / step) + 1)]
        return [value for value in values if value > 0 or not self.log]

    def _scaled(self, value: float | int) -> float:
        return math.log10(value) if self.log else float(value)


def _grid(horizontal: _Axis, vertical: _Axis) -> list[str]:
    parts = []
    for value in vertical.ticks():
        at = f"{vertical(value):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{at}" x2="{WIDTH - RIGHT}" y2="{at}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{at}" dy="5" text-anchor="end">{_short(value)}</text>'
        )
    for value in horizontal.ticks():
        at = f"{horizontal(value):.1f}"
        place = f'x="{at}" y="{HEIGHT - BOTTOM + 18}"'
        parts.append(f'<text {place} text-anchor="middle">{_short(value)}</text>')
    return parts


def _titles(x: str, y: str) -> list[str]:
    """Draw the titles of the axes; the vertical axis has its title upright, above the chart."""
    return [
        f'<text class="title" x="{LEFT}" y="18">{html.escape(y)}</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{html.escape(x)}</text>",
    ]


def _drawn(line: Line, colour: int, horizontal: _Axis, vertical: _Axis) -> list[str]:
    places = [(horizontal(x), vertical(y)) for x, y in line.points]
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline class="c{colour}" points="{joined}"/>']
    if len(places) <= 60:
        parts += [
            f'<circle class="f{colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in places
        ]
    parts += [
        f'<text x="{x + 5:.1f}" y="{y - 5:.1f}">{html.escape(label)}</text>'
        for (x, y), label in zip(places, line.labels, strict=False)
    ]
    return parts


def _legend(lines: Sequence[Line]) -> str:
    if len(lines) == 1:
        return ""
    keys = (
        f'<span><i class="k{i % 6}"></i>{html.escape(line.name)}</span>'
        for i, line in enumerate(lines)
    )
    return f'<p class="legend">{" ".join(keys)}</p>'


def _short(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
