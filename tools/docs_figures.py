"""Draws the figures of the documentation whose numbers stand in tables of its pages.

`python tools/docs_figures.py` writes docs/images/scaling.svg, peers.svg and encoders.svg.
"""

import re
from collections.abc import Callable
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from ramify.report.svg import PALETTE, PAPER, STYLE

DOCS = Path(__file__).parents[1] / "docs"


def table(page: str, head: str) -> list[dict[str, str]]:
    """The rows of the only table of a page whose heading contains `head`, by column."""
    text = (DOCS / page).read_text(encoding="utf-8")
    (found,) = re.findall(rf"^(\|[^\n]*{re.escape(head)}[^\n]*\n\|[-:| ]+\n(?:\|.*\n)+)", text, re.MULTILINE)
    lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in found.splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def number(cell: str) -> float:
    """The number of a cell; the middle of a range."""
    parts = [float(part.replace(",", "")) for part in cell.split("–")]
    return sum(parts) / len(parts)


def scaling(axes: list[Axes]) -> None:
    """Structures per second of one and two ranks, with the ideal."""
    rows = table("scaling.md", "times one rank")
    for plot, mode in zip(axes, ("weak", "strong"), strict=True):
        cases = [row for row in rows if row[""] == mode]
        one = number(cases[0]["structures/s"])
        names = [f"{row['ranks']} × {row['placement'].strip('`')}" for row in cases]
        rates = [number(row["structures/s"]) for row in cases]
        _bars(plot, names, rates, [row["structures/s"] for row in cases], PALETTE[0], inside=True)
        plot.axvline(2 * one, color=PALETTE[1], linewidth=1, linestyle=(0, (4, 2)))
        plot.set_title(f"{mode} scaling, structures/s; dashed: twice one rank", fontsize=9, loc="left")


def peers(axes: list[Axes]) -> None:
    """Processor time of a training step and memory of a step."""
    rows = table("step.md", "training step, s")
    names = [re.sub(r"this project, recipe `five`, one branch", "Ramify egnn", row["model"]) for row in rows]
    names = [re.sub(r"the same, encoder `many_body`", "Ramify many_body", name) for name in names]
    colours = [PALETTE[0] if name.startswith("Ramify") else PALETTE[3] for name in names]
    titles = {"training step, s": "training step, s of one core", "memory of a step, MB": "memory of a step, MB"}
    for plot, (column, title) in zip(axes, titles.items(), strict=True):
        _bars(plot, names, [number(row[column]) for row in rows], [row[column] for row in rows], colours)
        plot.set_title(title, fontsize=9, loc="left")


def encoders(axes: list[Axes]) -> None:
    """Validation metric against the time of the training, a line for each encoder; both axes logarithmic."""
    (plot,) = axes
    rows = table("encoders.md", "minutes of one core")
    for colour, kind in zip(PALETTE, dict.fromkeys(row["encoder"] for row in rows), strict=False):
        own = [row for row in rows if row["encoder"] == kind]
        times, metrics = ([number(row[column]) for row in own] for column in ("minutes of one core", "metric"))
        plot.loglog(times, metrics, "o-", color=colour, label=kind.strip("`"))
        for row, *place in zip(own, times, metrics, strict=True):
            plot.annotate(row["metric"], place, xytext=(5, 4), textcoords="offset points", fontsize=8, color=colour)
    for axis, ticks in ((plot.xaxis, (2, 3, 4, 6, 8, 12)), (plot.yaxis, (0.15, 0.2, 0.25, 0.3, 0.4, 0.5))):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    plot.margins(x=0.1)
    plot.set_xlabel("minutes of one core, loading of the compiled step and evaluations included")
    plot.set_ylabel("validation metric (trivial predictor: 1)")
    plot.legend(fontsize=9)


def _bars(
    plot: Axes, names: list[str], lengths: list[float], texts: list[str], colours: str | list[str], inside: bool = False
) -> None:
    bars = plot.barh(range(len(names)), lengths, color=colours, height=0.65)
    place = {"label_type": "center", "color": "white"} if inside else {"padding": 3}
    plot.bar_label(bars, texts, fontsize=9, **place)
    plot.set_yticks(range(len(names)), names)
    plot.invert_yaxis()
    plot.grid(axis="y", visible=False)
    plot.set_xlim(0, 1.18 * max(lengths))


FIGURES: dict[str, tuple[Callable[[list[Axes]], None], int, tuple[float, float]]] = {
    "scaling": (scaling, 2, (9.6, 2.6)),
    "peers": (peers, 2, (9.6, 2.6)),
    "encoders": (encoders, 1, (6.4, 4.0)),
}
"""The function of each figure, its number of panels, and its size in inches."""


def draw(name: str) -> Figure:
    """One figure."""
    function, panels, size = FIGURES[name]
    with rc_context(STYLE | {"figure.facecolor": PAPER, "savefig.facecolor": PAPER}):
        figure = Figure(size, layout="constrained")
        function(list(figure.subplots(1, panels, squeeze=False)[0]))
        return figure


def main() -> None:
    """Writes all figures."""
    for name in FIGURES:
        with rc_context(STYLE | {"savefig.facecolor": PAPER}):
            draw(name).savefig(DOCS / f"images/{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
