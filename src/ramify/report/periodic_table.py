"""Element counts on the periodic table (the paper's Figure 1).

Written directly as SVG: with matplotlib, the 118 cells of each table took a third of the time of a report.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.colors import LinearSegmentedColormap, LogNorm, to_hex

from ramify.elements import MAX_NUMBER, NUMBERS, SYMBOLS, period_and_group
from ramify.errors import RamifyError
from ramify.report.svg import INK, MUTED, RULE, SMALLEST_TEXT, Drawing, short_count

COUNT_COLORS = LinearSegmentedColormap.from_list(
    "counts", ["#e3f0ec", "#a9d6c9", "#5fb3ae", "#2a869c", "#1d5a86", "#1c2f5c"]
)
"""Lightness decreases uniformly, so that the order is visible with colour blindness and in grey print."""
ON_DARK, ON_LIGHT = "#fefefe", "#10161d"
"""Text colours on a filled cell. Unlike the colours of the theme they are not inverted on a dark page."""


def periodic_table(
    counts: Mapping[str, int],
    *,
    tooltips: Mapping[str, str] | None = None,
    largest: int | None = None,
    compact: bool = False,
) -> Drawing:
    """Draws all 118 elements, coloured by the logarithm of their count, with the count in the cell.

    Args:
        counts: count by chemical symbol; cells of absent elements stay empty.
        tooltips: further text about an element, by symbol.
        largest: count at the dark end of the scale, to share one scale between tables; default the largest of `counts`.
        compact: symbols only, without counts and scale, for small multiples.

    Raises:
        RamifyError: a symbol is not a chemical element.
    """
    unknown = [symbol for symbol in counts if symbol not in NUMBERS]
    if unknown:
        raise RamifyError(f"{unknown[0]!r} is not a chemical element", fix="use symbols from H to Og")
    present = {symbol: count for symbol, count in counts.items() if count > 0}
    norm = LogNorm(1, max(largest or 0, *present.values(), 10) if present else 10)
    size = SMALL if compact else LARGE
    parts = [_cell(size, number, present.get(SYMBOLS[number], 0), norm) for number in range(1, MAX_NUMBER + 1)]
    if not compact:
        parts += [_text(size, 3.5, y + 0.5, text, SMALLEST_TEXT, MUTED) for y, text in ((6, "57–71"), (7, "89–103"))]
        parts += _scale(size, norm)
    hints = {
        f"element-{NUMBERS[symbol]}": f"{symbol}: {count:,} atoms" + _more(tooltips, symbol)
        for symbol, count in present.items()
    }
    svg = f'<svg viewBox="0 0 {size.width:g} {size.height:g}">\n{"".join(parts)}</svg>'
    return Drawing.from_svg(svg, _describe(present), size.width, hints)


def cell_position(number: int) -> tuple[float, float]:
    """Column 1..18 and row of an element: the period, or 8.5 and 9.5 for lanthanides and actinides."""
    period, group = period_and_group(number)
    first = {6: 57, 7: 89}.get(period)  # La and Ac start the separate rows below
    if group == 3 and first is not None:
        return 3.0 + number - first, period + 2.5
    return float(group), float(period)


@dataclass(frozen=True)
class _Size:
    """Size of a table in CSS pixels, and contents of its cells."""

    width: float
    height: float
    symbol: float
    detailed: bool

    def place(self, column: float, row: float) -> tuple[float, float]:
        """Pixel coordinates of a corner of a cell, with a margin of 0.04 cells for the outlines."""
        return (column - 0.96) * self.width / 18.08, (row - 0.96) * self.height / 9.58


LARGE, SMALL = _Size(700, 392, symbol=12.5, detailed=True), _Size(306, 158, symbol=SMALLEST_TEXT, detailed=False)
"""The large one fits on A4, in 186 mm of 96 pixels per inch, without shrinking its texts."""
GAP = 0.04
"""Gap between the edge of a cell and its square, as a fraction of a cell."""


def _cell(size: _Size, number: int, count: int, norm: LogNorm) -> str:
    """A square with its texts. The square is a separate group, for its tooltip."""
    x, y = cell_position(number)
    shade = COUNT_COLORS(float(norm(count))) if count else None
    fill, text = ("none", MUTED) if shade is None else (to_hex(shade), _text_on(shade))
    (left, top), (right, bottom) = size.place(x + GAP, y + GAP), size.place(x + 1 - GAP, y + 1 - GAP)
    outline = "none" if count else f"{RULE}; stroke-width: 0.6"
    parts = [
        f'<g id="element-{number}"><path d="M {left:.2f} {top:.2f} H {right:.2f} V {bottom:.2f} H {left:.2f} Z" '
        f'style="fill: {fill}; stroke: {outline}"/></g>'
    ]
    weight = "bold" if count and size.detailed else "normal"
    parts.append(_text(size, x + 0.5, y + 0.5, SYMBOLS[number], size.symbol, text, weight=weight))
    if size.detailed:
        parts.append(_text(size, x + 0.1, y + 0.22, str(number), SMALLEST_TEXT, text, anchor="start", opacity=0.8))
        if count:
            parts.append(_text(size, x + 0.5, y + 0.8, short_count(count), SMALLEST_TEXT, text))
    return "\n".join(parts) + "\n"


def _text(
    size: _Size,
    column: float,
    row: float,
    text: str,
    points: float,
    color: str,
    *,
    anchor: str = "middle",
    weight: str = "normal",
    opacity: float = 1.0,
) -> str:
    """A text with its capitals vertically centred at y; their height is about 0.73 of the font size."""
    x, y = size.place(column, row)
    style = f"font: {weight} {points:g}px system-ui; text-anchor: {anchor}; fill: {color}"
    seen = "" if opacity == 1 else f"; opacity: {opacity:g}"
    return f'<text x="{x:.2f}" y="{y + 0.365 * points:.2f}" style="{style}{seen}">{html.escape(text)}</text>\n'


def _scale(size: _Size, norm: LogNorm) -> list[str]:
    """The colour scale, in the gap above the transition metals."""
    left, width, top, height = 4.4, 6.2, 2.35, 0.26
    (x0, y0), (x1, y1) = size.place(left, top), size.place(left + width, top + height)
    stops = "".join(
        f'<stop offset="{k / 20:g}" style="stop-color: {to_hex(COUNT_COLORS(k / 20))}"/>' for k in range(21)
    )
    parts = [
        f'<defs><linearGradient id="counts">{stops}</linearGradient></defs>\n',
        f'<path d="M {x0:.2f} {y0:.2f} H {x1:.2f} V {y1:.2f} H {x0:.2f} Z" style="fill: url(#counts)"/>\n',
        _text(size, left, top - 0.22, "atoms of each element", 9, INK, anchor="start"),
    ]
    decades = math.log10(float(norm.vmax or 10))
    for exponent in range(0, math.floor(decades + 1e-9) + 1, 1 if decades < 7 else 2):
        label = short_count(10**exponent).replace(".0", "")
        parts.append(_text(size, left + width * exponent / decades, top + height + 0.18, label, SMALLEST_TEXT, MUTED))
    return parts


def _text_on(fill: tuple[float, float, float, float]) -> str:
    red, green, blue, _ = fill
    return ON_LIGHT if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else ON_DARK  # ITU-R BT.601 luma


def _more(tooltips: Mapping[str, str] | None, symbol: str) -> str:
    return f"\n{tooltips[symbol]}" if tooltips and symbol in tooltips else ""


def _describe(present: Mapping[str, int]) -> str:
    most = sorted(present, key=lambda symbol: -present[symbol])[:5]
    listed = ", ".join(f"{symbol} {present[symbol]:,}" for symbol in most)
    return f"Periodic table of {len(present)} elements by number of atoms" + (f"; most: {listed}" if most else "")
