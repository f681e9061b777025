"""Draws panels of columns as SVG text. Pure; knows nothing of what the columns mean.

The picture has its own background, light or dark as the viewer prefers, so that it can be read
in a README, a browser and an image viewer alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from msgspec import Struct

_WIDTH = 920
_MARGIN = 36
_GAP = 56  # between two panels
_AXIS = 44  # room for the numbers at the left of a panel
_PLOT_HEIGHT = 230
_LINE = 19
_COLUMN = 64  # widest
_HEADROOM = 1.1  # the highest value has its number above it
_MOST_TICKS = 6
_LETTER = 0.56  # of the font size: the width of a letter, roughly

_STYLE = """
text { font: 13px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2933 }
.ground { fill: #ffffff }
.title { font-size: 20px; font-weight: 600 }
.head { font-size: 15px; font-weight: 600 }
.value { font-weight: 600; paint-order: stroke; stroke: #ffffff; stroke-width: 5px }
.quiet { fill: #5f6c7b; font-size: 12px }
.caution { fill: #a8480b; font-size: 12px }
.grid { stroke: #e4e8ee; stroke-width: 1 }
.axis { stroke: #8a96a5; stroke-width: 1 }
.column { fill: #3567d6 }
.spread { stroke: #1f2933; stroke-width: 1.5; fill: none; opacity: 0.75 }
@media (prefers-color-scheme: dark) {
text { fill: #e6eaf0 }
.ground { fill: #14181f }
.value { stroke: #14181f }
.quiet { fill: #9aa7b8 }
.caution { fill: #f0a35e }
.grid { stroke: #2a313c }
.axis { stroke: #6b7788 }
.column { fill: #6c97f2 }
.spread { stroke: #e6eaf0 }
}
"""


class Column(Struct, frozen=True):
    """One value with its lowest and highest run, in the unit of its panel."""

    label: str
    value: float
    lowest: float
    highest: float
    text: str  # the value in words
    below: str = ""  # a second line under the label


class Panel(Struct, frozen=True):
    """Columns on one axis that begins at 0."""

    title: str
    axis: str  # what the numbers at the left count
    columns: tuple[Column, ...]


def draw(
    title: str,
    about: Sequence[str],
    panels: Sequence[Panel],
    notes: Sequence[str] = (),
    cautions: Sequence[str] = (),
) -> str:
    """Return an SVG document: `title`, lines `about` it, panels side by side, the rest below."""
    letters = int((_WIDTH - 2 * _MARGIN) / (12 * _LETTER))
    parts = [_text(_MARGIN, 44, _cut(title, 70), "title")]
    y = 44.0
    for line in _broken(about, letters):
        y += _LINE
        parts.append(_text(_MARGIN, y, line, "quiet"))
    y += 44
    width = (_WIDTH - 2 * _MARGIN - _GAP * (len(panels) - 1)) / max(1, len(panels))
    for i, panel in enumerate(panels):
        parts += _panel(panel, _MARGIN + i * (width + _GAP), y, width)
    y += 2 * _LINE + _PLOT_HEIGHT + 4 * _LINE
    for kind, lines in (("quiet", notes), ("caution", cautions)):
        for line in _broken(lines, letters):
            parts.append(_text(_MARGIN, y, line, kind))
            y += _LINE
    height = round(y + 8)
    extent = f'width="{_WIDTH}" height="{height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {extent}',
            f'  viewBox="0 0 {_WIDTH} {height}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            f'<rect class="ground" {extent}/>',
            *parts,
            "</svg>\n",
        ]
    )


def ticks(highest: float) -> list[float]:
    """Return round numbers with equal steps, from 0 to the last one that is not above `highest`."""
    if highest <= 0:
        return [0.0]
    rough = highest / (_MOST_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 2.5, 5, 10) if power * n >= rough * (1 - 1e-9))
    return [round(step * i, 12) for i in range(math.floor(highest / step + 1e-9) + 1)]


def _panel(panel: Panel, left: float, top: float, width: float) -> Iterator[str]:
    yield _text(left, top, panel.title, "head")
    yield _text(left, top + _LINE, panel.axis, "quiet")
    highest = max((column.highest for column in panel.columns), default=0.0)
    zero = top + 2 * _LINE + _PLOT_HEIGHT
    start, end = left + _AXIS, left + width

    def height(value: float) -> float:
        return zero - value / (highest * _HEADROOM or 1) * _PLOT_HEIGHT

    for mark in ticks(highest):
        y = height(mark)
        kind = "grid" if mark else "axis"
        yield f'<line class="{kind}" x1="{start:g}" y1="{y:.1f}" x2="{end:.1f}" y2="{y:.1f}"/>'
        yield _text(start - 8, y + 4, f"{mark:,.10g}", "quiet", "end")
    place = (end - start) / max(1, len(panel.columns))
    for i, column in enumerate(panel.columns):
        middle = start + place * (i + 0.5)
        yield from _column(column, middle, min(_COLUMN, place * 0.62), zero, height(column.value))
        low, high = height(column.lowest), height(column.highest)
        if low - high > 1:
            yield (
                f'<path class="spread" d="M{middle - 5:.1f} {high:.1f}h10m-5 0V{low:.1f}m-5 0h10"/>'
            )
        yield _text(middle, min(high, height(column.value)) - 8, column.text, "value", "middle")


def _column(column: Column, middle: float, width: float, zero: float, top: float) -> Iterator[str]:
    yield (
        f'<rect class="column" x="{middle - width / 2:.1f}" y="{top:.1f}" '
        f'width="{width:.1f}" height="{max(0.0, zero - top):.1f}" rx="2"/>'
    )
    yield _text(middle, zero + _LINE, column.label, "", "middle")
    if column.below:
        yield _text(middle, zero + 2 * _LINE, column.below, "quiet", "middle")


def _text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}"'
    place += f' class="{kind}"' if kind else ""
    place += f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f"<text {place}>{escape(words)}</text>"


def _cut(words: str, n_letters: int) -> str:
    return words if len(words) <= n_letters else words[: n_letters - 1] + "…"


def _broken(lines: Sequence[str], n_letters: int) -> Iterator[str]:
    """Break lines at their spaces."""
    for words in lines:
        line = ""
        for word in words.split():
            if line and len(line) + 1 + len(word) > n_letters:
                yield line
                line = ""
            line = f"{line} {word}".strip()
        yield _cut(line, n_letters)
