"""Element counts on the periodic table (the paper's Figure 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.patches import Rectangle

from ramify.elements import MAX_NUMBER, NUMBERS, SYMBOLS, period_and_group
from ramify.errors import RamifyError
from ramify.report.svg import INK, MUTED, RULE, Canvas, Drawing, short_count

COUNT_COLORS = LinearSegmentedColormap.from_list(
    "counts", ["#e3f0ec", "#a9d6c9", "#5fb3ae", "#2a869c", "#1d5a86", "#1c2f5c"]
)
"""Lightness falls evenly from end to end, so that the order survives colour blindness and grey printing."""
ON_DARK, ON_LIGHT = "#fefefe", "#10161d"
"""Text on a filled cell. Unlike the theme's colours these do not turn around in a dark page."""


def periodic_table(
    counts: Mapping[str, int],
    *,
    tooltips: Mapping[str, str] | None = None,
    largest: int | None = None,
    compact: bool = False,
    what: str = "atoms",
) -> Drawing:
    """All 118 elements, those that occur coloured by the logarithm of their count, the count in the cell.

    Args:
        counts: count by chemical symbol; what is absent or zero stays empty.
        tooltips: more about an element, by symbol, shown when its cell is pointed at.
        largest: count at the dark end of the scale, to share one scale between tables; default the largest of `counts`.
        compact: symbols only, without counts and scale, for small multiples.
        what: what is counted, for the legend and the description.

    Raises:
        RamifyError: a symbol is no chemical element.
    """
    unknown = [symbol for symbol in counts if symbol not in NUMBERS]
    if unknown:
        raise RamifyError(f"{unknown[0]!r} is no chemical element", fix="use symbols from H to Og")
    present = {symbol: count for symbol, count in counts.items() if count > 0}
    norm = LogNorm(1, max(largest or 0, *present.values(), 10) if present else 10)
    with Canvas(*((306, 158) if compact else (936, 500))) as canvas:
        canvas.figure.set_layout_engine("none")  # the cells fill the figure to its edges
        axes = canvas.figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set(xlim=(0.96, 19.04), ylim=(10.54, 0.96))
        axes.axis("off")
        for number in range(1, MAX_NUMBER + 1):
            _cell(axes, number, present.get(SYMBOLS[number], 0), norm, compact)
        if not compact:
            _f_block_marks(axes)
            _scale(axes, norm, what)
        hints = {
            f"element-{NUMBERS[symbol]}": f"{symbol}: {count:,} {what}" + _more(tooltips, symbol)
            for symbol, count in present.items()
        }
        return canvas.drawing(_describe(present, what), hints)


def cell_position(number: int) -> tuple[float, float]:
    """Column 1..18 and row of an element: the period, or 8.5 and 9.5 for lanthanides and actinides."""
    period, group = period_and_group(number)
    first = {6: 57, 7: 89}.get(period)  # La and Ac begin the rows that stand below
    if group == 3 and first is not None:
        return 3.0 + number - first, period + 2.5
    return float(group), float(period)


def _cell(axes: Axes, number: int, count: int, norm: LogNorm, compact: bool) -> None:
    x, y = cell_position(number)
    shade = COUNT_COLORS(float(norm(count))) if count else None
    fill, text = ("none", MUTED) if shade is None else (shade, _text_on(shade))
    gap = 0.04
    square = Rectangle(
        (x + gap, y + gap), 1 - 2 * gap, 1 - 2 * gap, facecolor=fill, edgecolor="none" if count else RULE, linewidth=0.6
    )
    square.set_gid(f"element-{number}")
    axes.add_patch(square)
    if compact:
        axes.text(x + 0.5, y + 0.53, SYMBOLS[number], ha="center", va="center", fontsize=6, color=text)
        return
    axes.text(x + 0.1, y + 0.12, str(number), ha="left", va="top", fontsize=6.2, color=text, alpha=0.8)
    axes.text(
        x + 0.5, y + 0.5, SYMBOLS[number], ha="center", va="center", fontsize=12.5, color=text,
        weight="bold" if count else "normal",
    )  # fmt: skip
    if count:
        axes.text(x + 0.5, y + 0.9, short_count(count), ha="center", va="bottom", fontsize=8, color=text)


def _f_block_marks(axes: Axes) -> None:
    for y, text in ((6, "57–71"), (7, "89–103")):
        axes.text(3.5, y + 0.5, text, ha="center", va="center", fontsize=7, color=MUTED)


def _scale(axes: Axes, norm: LogNorm, what: str) -> None:
    """The colour scale, in the gap above the transition metals."""
    left, width, top, height = 4.4, 6.2, 2.35, 0.26
    limits = axes.get_xlim(), axes.get_ylim()
    extent = (left, left + width, top + height, top)
    axes.imshow(np.linspace(0, 1, 256)[None], cmap=COUNT_COLORS, extent=extent, aspect="auto", interpolation="bilinear")
    axes.set(xlim=limits[0], ylim=limits[1])  # which imshow moves
    axes.text(left, top - 0.16, f"{what} of each element", ha="left", va="bottom", fontsize=9, color=INK)
    decades = math.log10(float(norm.vmax or 10))
    for exponent in range(0, math.floor(decades + 1e-9) + 1, 1 if decades < 7 else 2):
        x = left + width * exponent / decades
        label = short_count(10**exponent).replace(".0", "")
        axes.text(x, top + height + 0.1, label, ha="center", va="top", fontsize=7.5, color=MUTED)


def _text_on(fill: tuple[float, float, float, float]) -> str:
    red, green, blue, _ = fill
    return ON_LIGHT if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else ON_DARK  # ITU-R BT.601 luma


def _more(tooltips: Mapping[str, str] | None, symbol: str) -> str:
    return f"\n{tooltips[symbol]}" if tooltips and symbol in tooltips else ""


def _describe(present: Mapping[str, int], what: str) -> str:
    most = sorted(present, key=lambda symbol: -present[symbol])[:5]
    listed = ", ".join(f"{symbol} {present[symbol]:,}" for symbol in most)
    return f"Periodic table of {len(present)} elements by number of {what}" + (f"; most: {listed}" if most else "")
