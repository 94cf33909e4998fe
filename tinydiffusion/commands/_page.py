"""The style of a report's page, and the small pieces that it is made of."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

STYLE = """
:root { --ink: #1c1e21; --soft: #5f6670; --paper: #fff; --line: #dfe3e8; --panel: #f6f7f9;
  --warn: #8a5a00; --bad: #b3261e;
  --c0: #1f6feb; --c1: #c2410c; --c2: #15803d; --c3: #7c3aed; --c4: #be185d; --c5: #0f766e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa3ad; --paper: #14161a;
  --line: #30353c; --panel: #1c1f24; --warn: #e5b567; --bad: #ff8a80; --c0: #6ea8fe; --c1: #fb923c;
  --c2: #4ade80; --c3: #c4b5fd; --c4: #f9a8d4; --c5: #5eead4; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 2rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .7rem; }
h3 { font-size: .95rem; margin: 1rem 0 .4rem; }
p { max-width: 46rem; margin: .4rem 0; } .soft { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .9rem .32rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { color: var(--soft); font-weight: 500; } td.number, th.number { text-align: right; }
.warn { color: var(--warn); } .bad { color: var(--bad); }
ul { margin: .4rem 0; padding-left: 1.2rem; max-width: 60rem; overflow-wrap: anywhere; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1.4rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr));
  gap: .7rem; }
.pictures figure { margin: 0; font-size: .78rem; line-height: 1.3; break-inside: avoid; }
.pictures img { width: 100%; border-radius: 3px; background: var(--panel); }
img.figure { max-width: 100%; min-width: min(30rem, 100%); }
img { image-rendering: pixelated; display: block; }
svg { width: 100%; max-width: 36rem; height: auto; display: block; }
svg.bar { width: 8rem; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
svg .grid, svg .axis { stroke: var(--line); } svg polyline { fill: none; stroke-width: 2; }
svg .thick { stroke-width: 4; stroke-linecap: round; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .85rem; }
.legend i { display: inline-block; width: .8rem; height: .25rem; margin-right: .35rem;
  vertical-align: middle; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--soft); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; background: var(--panel);
  padding: .8rem; border-radius: 4px; }
@media print { body { max-width: none; padding: 0; font-size: 11px; } h2 { break-after: avoid; }
  svg, tr, figure { break-inside: avoid; } }
"""
COLOURS = "".join(
    f".c{i} {{ stroke: var(--c{i}); }} .f{i} {{ fill: var(--c{i}); }} "
    f".k{i} {{ background: var(--c{i}); }}\n"
    for i in range(6)
)


def page(title: str, sections: Iterable[str]) -> str:
    """A whole HTML document that needs nothing from anywhere."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}{COLOURS}</style>\n</head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading with what stands below it; nothing where nothing does."""
    below = [part for part in parts if part]
    return "\n".join([f"<h2>{html.escape(title)}</h2>", *below]) if below else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """A table of cells that are HTML already.

    Args:
        head: Titles of the columns.
        rows: Their cells.
        numbers: Places of the columns that are set flush right.
    """
    right = set(numbers)

    def cells(tag: str, row: Sequence[str]) -> str:
        kind = (' class="number"' if i in right else "" for i in range(len(row)))
        return "".join(f"<{tag}{k}>{cell}</{tag}>" for k, cell in zip(kind, row, strict=True))

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table>\n<thead><tr>{cells("th", head)}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def picture(png: str, caption: str) -> str:
    """A picture in base64 with text below it."""
    text = html.escape(caption)
    return (
        f'<figure><img src="data:image/png;base64,{html.escape(png)}" alt="{text}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def text(value: Any) -> str:
    """Anything as text of a page."""
    return html.escape(str(value))
