"""Two charts as SVG, by our own few lines: bars of ratios, and curves of memory.

The text takes the colours of the reader's scheme, light or dark; the rest is legible on both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from xml.sax.saxutils import escape

_STYLE = """
text { font-family: system-ui, sans-serif; font-size: 13px; fill: #1f2328 }
.title { font-weight: 600; font-size: 15px }
.quiet { fill: #59636e }
.end { text-anchor: end }
.middle { text-anchor: middle }
.grid { stroke: #8b949e; stroke-opacity: 0.35 }
.axis { stroke: #8b949e }
.reached { fill: #2f81f7 }
.missed { fill: #d4762c }
.target { stroke: #1f2328; stroke-width: 2.5 }
.curve { fill: none; stroke-width: 2.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .quiet { fill: #9198a1 }
  .target { stroke: #e6edf3 }
}
"""
#: Of the curves, each with a dash of its own, for those who do not tell colours apart.
_STROKES = [("#2f81f7", "none"), ("#2da44e", "7 4"), ("#d4762c", "none"), ("#a371f7", "2 3")]


@dataclass(frozen=True)
class Bar:
    """How many times faster than ``beside`` we are, and should be."""

    label: str
    beside: str
    ratio: float
    target: float | None


def bars(title: str, rows: list[Bar]) -> str:
    """Return horizontal bars from 1 (as fast) on a logarithmic scale, the targets as ticks.

    A bar is blue if its target is reached or there is none, and orange if not.
    """
    label_end, start, end, pitch, top = 570, 590, 960, 26, 84
    values = [1.0, 2.0, *(row.ratio for row in rows), *(row.target or 1 for row in rows)]
    low, high = math.floor(math.log2(min(values))), math.ceil(math.log2(max(values)))

    def x(ratio: float) -> float:
        return start + (math.log2(ratio) - low) / (high - low) * (end - start)

    bottom = top + pitch * len(rows)
    note = "than the tool in parentheses, on a logarithmic scale; the tick is the target"
    body = [_text(20, 28, title, "title"), _text(20, 50, note, "quiet")]
    for power in range(low, high + 1):
        at = x(2.0**power)
        body.append(_line(at, top - 8, at, bottom, "axis" if power == 0 else "grid"))
        body.append(_text(at, top - 14, f"{2.0**power:g}×", "quiet middle"))
    for index, row in enumerate(rows):
        y = top + pitch * index
        left, right = sorted((x(1), x(row.ratio)))
        colour = "missed" if row.target is not None and row.ratio < row.target else "reached"
        label = escape(f"{row.label} ({row.beside})")
        body += [
            f'<text x="{label_end}" y="{y + 14}" class="end">{label}</text>',
            f'<rect x="{left:.1f}" y="{y + 3}" width="{max(right - left, 1):.1f}" height="14" '
            f'rx="2" class="{colour}"/>',
            _text(max(right, x(row.target or 1)) + 8, y + 14, f"{row.ratio:.1f}"),
        ]
        if row.target is not None:
            body.append(_line(x(row.target), y, x(row.target), y + 20, "target"))
    return _svg(title, 1020, bottom + 20, body)


def curves(title: str, lines: dict[str, list[tuple[float, float]]]) -> str:
    """Return peak memory in MB against file size in GB, both logarithmic, a curve for each name."""
    start, end, top, bottom = 80, 740, 100, 420
    points = [point for line in lines.values() for point in line]
    sizes = sorted({size for size, _ in points})
    left, right = math.log(sizes[0]), math.log(sizes[-1])
    low = math.floor(math.log10(min(peak for _, peak in points)))
    high = math.ceil(math.log10(max(peak for _, peak in points)))

    def x(size: float) -> float:
        return start + (math.log(size) - left) / ((right - left) or 1) * (end - start)

    def y(peak: float) -> float:
        return bottom - (math.log10(peak) - low) / ((high - low) or 1) * (bottom - top)

    body = [_text(20, 28, title, "title")]
    for power in range(low, high + 1):
        at = y(10.0**power)
        body.append(_line(start, at, end, at, "grid"))
        body.append(_text(start - 8, at + 4, f"{10**power:,} MB", "quiet end"))
    for size in sizes:
        body.append(_line(x(size), bottom, x(size), bottom + 5, "axis"))
        body.append(_text(x(size), bottom + 20, f"{size:g}", "quiet middle"))
    body.append(_text((start + end) / 2, bottom + 42, "size of the file, GB", "quiet middle"))
    for index, (name, line) in enumerate(lines.items()):
        colour, dash = _STROKES[index % len(_STROKES)]
        stroke = f'stroke="{colour}" stroke-dasharray="{dash}" class="curve"'
        path = " ".join(f"{x(size):.1f},{y(peak):.1f}" for size, peak in line)
        body.append(f'<polyline points="{path}" {stroke}/>')
        body += [
            f'<circle cx="{x(size):.1f}" cy="{y(peak):.1f}" r="3.5" fill="{colour}"/>'
            for size, peak in line
        ]
        at = 20 + 190 * index
        body.append(f'<polyline points="{at},58 {at + 28},58" {stroke}/>')
        body.append(_text(at + 36, 62, name))
    return _svg(title, 790, bottom + 60, body)


def _text(x: float, y: float, text: str, classes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{classes}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, classes: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{classes}"/>'


def _svg(title: str, width: int, height: int, body: Iterable[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">'
    )
    return "\n".join(
        [head, f"<title>{escape(title)}</title>", f"<style>{_STYLE}</style>", *body, "</svg>", ""]
    )
