"""Small SVG plots that suit light and dark pages: bars, ranges on a log scale, lines."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

WIDTH = 760
LABELS = 190  # width of what stands to the left of the bars
LINE = 18  # height of a bar with its space
FONT = "12px system-ui, sans-serif"

# Told apart by most colour-blind eyes; readable on white and on near-black.
COLOURS = {
    "tloop": "#0072b2",
    "tloop+mbedtls": "#56b4e9",
    "uvloop": "#d55e00",
    "uvloop+primed": "#e69f00",
    "asyncio": "#7f7f7f",
    "asyncio+primed": "#a9a9a9",
    "rloop": "#cc79a7",
    "blazio": "#009e73",
    "zloop": "#9467bd",
    "zuvloop": "#b8860b",
    "rsloop": "#c44e52",
    "veloxloop": "#17becf",
    "epoll": "#7d8590",
}
OTHER = "#8c8c6c"
STYLE = f"""<style>
text {{ font: {FONT}; fill: #24292f; }}
.axis {{ stroke: #8c959f; stroke-width: 1; }}
.grid {{ stroke: #8c959f; stroke-opacity: .25; }}
.head {{ font-weight: 600; }}
@media (prefers-color-scheme: dark) {{ text {{ fill: #e6edf3; }} }}
</style>"""


def colour(name: str) -> str:
    return COLOURS.get(name, COLOURS.get(name.partition("+")[0], OTHER))


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'
    )


def _rule(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _marks(values: Iterable[float]) -> tuple[float, float, list[float]]:
    """A log scale for the values: its ends as powers of ten, and the round numbers on it."""
    known = list(values)
    low, high = math.log10(min(known)) - 0.05, math.log10(max(known)) + 0.05
    marks = (digit * 10.0**power for power in range(-2, 9) for digit in (1, 2, 5))
    return low, high, [mark for mark in marks if low <= math.log10(mark) <= high]


def _page(height: float, title: str, parts: Iterable[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img">'
    return "\n".join([head, f"<title>{escape(title)}</title>", STYLE, *parts, "</svg>\n"])


def bars(
    title: str, groups: Mapping[str, Mapping[str, float]], baseline: str, limit: float = 2.5
) -> str:
    """Ratios to a baseline of 1, one group of bars per row; longer ones are cut at the limit."""
    scale = (WIDTH - LABELS - 60) / limit
    parts, y = [_text(0, 14, title, kind="head")], 34.0
    for row, values in groups.items():
        parts.append(_text(0, y, row, kind="head"))
        y += 6
        for name, value in values.items():
            length = scale * min(value, limit)
            parts.append(
                f'<rect x="{LABELS}" y="{y:.0f}" width="{length:.1f}" height="{LINE - 5}" rx="2" '
                f'fill="{colour(name)}"/>'
            )
            parts.append(_text(LABELS - 8, y + 11, name, "end"))
            parts.append(_text(LABELS + length + 6, y + 11, f"{value:.2f}"))
            y += LINE
        y += LINE
    parts.append(_rule(LABELS + scale, 24, LABELS + scale, y - LINE, "axis"))
    parts.append(_text(LABELS + scale, y - 2, f"{baseline} = 1; shorter is cheaper", "middle"))
    return _page(y + 6, title, parts)


def ranges(title: str, rows: Mapping[str, Sequence[float]], unit: str) -> str:
    """The median, a high and a very high quantile of each row, on a log scale."""
    low, high, marks = _marks(value for row in rows.values() for value in row)
    scale = (WIDTH - LABELS - 30) / (high - low)

    def x(value: float) -> float:
        return LABELS + scale * (math.log10(value) - low)

    bottom = 28 + LINE * len(rows)
    parts = [_text(0, 14, title, kind="head")]
    for mark in marks:
        parts.append(_rule(x(mark), 22, x(mark), bottom, "grid"))
        parts.append(_text(x(mark), bottom + 14, f"{mark:,g}", "middle"))
    parts.append(_text(LABELS - 8, bottom + 14, unit, "end"))
    for index, (name, points) in enumerate(rows.items()):
        y = 34 + LINE * index
        parts.append(_text(LABELS - 8, y + 4, name, "end"))
        paint = colour(name)
        parts.append(
            f'<line x1="{x(points[0]):.1f}" y1="{y}" x2="{x(points[-1]):.1f}" y2="{y}" '
            f'stroke="{paint}" stroke-width="3" stroke-opacity=".45"/>'
        )
        for radius, point in zip((5, 4, 3), points, strict=False):
            parts.append(f'<circle cx="{x(point):.1f}" cy="{y}" r="{radius}" fill="{paint}"/>')
    return _page(bottom + 24, title, parts)


def lines(
    title: str, ticks: Sequence[str], curves: Mapping[str, Mapping[str, float]], unit: str
) -> str:
    """One curve per contender over the ticks; a log scale upwards."""
    low, high, marks = _marks(value for curve in curves.values() for value in curve.values())
    left, right, top, bottom = 60, WIDTH - 170, 40, 310

    def at(tick: str, value: float) -> tuple[float, float]:
        share = (ticks.index(tick) + 0.5) / len(ticks)
        height = (math.log10(value) - low) / (high - low)
        return left + share * (right - left), bottom - height * (bottom - top)

    parts = [_text(0, 14, title, kind="head"), _rule(left, bottom, right, bottom, "axis")]
    parts += [_text(at(tick, 1)[0], bottom + 16, tick, "middle") for tick in ticks]
    for mark in marks:
        y = at(ticks[0], mark)[1]
        parts += [_rule(left, y, right, y, "grid"), _text(left - 6, y + 4, f"{mark:,g}", "end")]
    parts.append(_text(left - 6, top - 8, unit, "end"))
    ends = sorted((at(list(c)[-1], list(c.values())[-1]), name) for name, c in curves.items())
    below = float(top - LINE)
    for (_, y), name in sorted(ends, key=lambda end: end[0][1]):
        below = max(below + LINE - 4, y + 4)  # names do not cover each other
        parts.append(_text(right + 22, below, name))
        paint = f'<circle cx="{right + 14}" cy="{below - 4:.0f}" r="4" fill="{colour(name)}"/>'
        parts.append(paint)
    for name, curve in curves.items():
        points = [at(tick, value) for tick, value in curve.items()]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        stroke = f'fill="none" stroke="{colour(name)}" stroke-width="2.5"'
        dashes = ' stroke-dasharray="5 4"' if name.endswith("+primed") else ""
        parts.append(f'<polyline points="{path}" {stroke}{dashes}/>')
    return _page(max(bottom + 24, below + 8), title, parts)
