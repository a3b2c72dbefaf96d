"""Figures of scaling: seconds per step against ranks on logarithmic axes with ideal lines, as Figure 4 of the paper."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from ramify.report.svg import INK, MUTED, Canvas, colors, log_axis

TITLES = {"weak": "weak scaling", "strong": "strong scaling"}
PNG_DPI = 160
MARKERS = "osD^vP*X"


def draw_scaling(content: Mapping[str, Any], out: Path) -> None:
    """Writes `scale.svg` and `scale.png` of measured cases: one panel per mode, one line per placement.

    Points are medians, bars the quartiles, dashed lines the ideal scaling from the smallest number of ranks.
    """
    modes = [mode for mode in TITLES if any(case["mode"] == mode for case in content["cases"])]
    if not modes:  # only calibration cases so far
        return
    with Canvas(330 * len(modes), 250) as canvas:
        panels = canvas.figure.subplots(1, len(modes), squeeze=False)[0]
        for axes, mode in zip(panels, modes, strict=True):
            _panel(axes, mode, [case for case in content["cases"] if case["mode"] == mode])
        drawn = canvas.drawing("Seconds per training step against ranks: " + _words(content["cases"]))
        drawn.save(out / "scale.svg")
        canvas.figure.savefig(out / "scale.png", dpi=PNG_DPI, facecolor="white")


def _words(cases: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(f"{c['mode']} {c['placement']} on {c['ranks']}: {c['seconds']:.3g} s" for c in cases)


def _panel(axes: Any, mode: str, cases: Sequence[Mapping[str, Any]]) -> None:
    alone = [case for case in cases if case["ranks"] == 1]
    placements = list(dict.fromkeys(case["placement"] for case in cases if case["ranks"] > 1)) or ["replicated"]
    color = colors(placements)
    for placement, marker in zip(placements, cycle(MARKERS), strict=False):
        points = sorted(
            [*alone, *(c for c in cases if c["placement"] == placement and c["ranks"] > 1)], key=lambda c: c["ranks"]
        )
        ranks, seconds = [p["ranks"] for p in points], [p["seconds"] for p in points]
        spread = [
            [p["seconds"] - p["quartiles"][0] for p in points],
            [p["quartiles"][1] - p["seconds"] for p in points],
        ]
        axes.errorbar(
            ranks, seconds, yerr=spread, color=color[placement], marker=marker, markersize=4, label=placement, zorder=3
        )
    everything = sorted({case["ranks"] for case in cases})
    first = min(cases, key=lambda case: case["ranks"])
    slope = 0.0 if mode == "weak" else -1.0
    ideal = [first["seconds"] * (ranks / first["ranks"]) ** slope for ranks in everything]
    axes.plot(everything, ideal, color=INK, linestyle=(0, (4, 2)), linewidth=1.0, label="ideal", zorder=2)
    _finish(axes, everything, TITLES[mode])


def _finish(axes: Any, ranks: Sequence[int], title: str, what: str = "ranks") -> None:
    axes.set_title(title, color=INK, fontsize=9.5)
    axes.set_xlabel(what)
    axes.set_ylabel("seconds per step")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 1e-9), high)
    log_axis(axes, "y")
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(ranks), [str(r) for r in ranks])
    axes.legend(frameon=False, fontsize=8, labelcolor=MUTED)


def draw_memory(content: Mapping[str, Any], out: Path) -> None:
    """Writes `memory.svg` and `memory.png`: largest memory of a rank against branches, measured and planned."""
    rows = [row for row in content["rows"] if row["alone"]]
    first = [row for row in rows if row["branches"] == 1]
    placements = list(dict.fromkeys(row["placement"] for row in rows))
    color = colors(placements)
    with Canvas(360, 250) as canvas:
        axes = canvas.axes()
        for placement, marker in zip(placements, cycle(MARKERS), strict=False):
            own = [row for row in rows if row["placement"] == placement and row["branches"] > 1]
            points = sorted([*first, *own], key=lambda row: row["branches"])
            branches = [row["branches"] for row in points]
            axes.plot(branches, [row["planned"] / 1e9 for row in points], color=color[placement], linewidth=1.0)
            axes.plot(
                branches,
                [row["process"] / 1e9 for row in points],
                color=color[placement],
                marker=marker,
                linestyle="none",
                markersize=5,
                label=placement,
            )
        axes.set_ylim(bottom=0.0)
        axes.set_xlabel("branches, on as many ranks")
        axes.set_ylabel("largest memory of a rank, GB")
        axes.legend(
            frameon=False, fontsize=8, labelcolor=MUTED, title="points measured, lines planned", title_fontsize=8
        )
        words = "; ".join(f"{r['placement']}, {r['branches']} branches: {r['process'] / 1e9:.2f} GB" for r in rows)
        canvas.drawing(f"Largest memory of a rank: {words}").save(out / "memory.svg")
        canvas.figure.savefig(out / "memory.png", dpi=PNG_DPI, facecolor="white")


def draw_prediction(content: Mapping[str, Any], out: Path) -> None:
    """Writes `predict.svg` and `predict.png`: predicted seconds per step, by ranks and by branches."""
    scaling, growth = content["scaling"], content["branches"]
    with Canvas(900, 260) as canvas:
        weak, strong, branches = canvas.figure.subplots(1, 3)
        for axes, mode in ((weak, "weak"), (strong, "strong")):
            rows = [row for row in scaling if row["mode"] == mode]
            _curves(axes, rows, "ranks")
            slope = 0.0 if mode == "weak" else -1.0
            ideal = [rows[0]["seconds"]["replicated"] * (row["ranks"] / rows[0]["ranks"]) ** slope for row in rows]
            axes.plot([r["ranks"] for r in rows], ideal, color=INK, linestyle=(0, (4, 2)), linewidth=1.0, label="ideal")
            per = f"{content['batch']} per rank" if mode == "weak" else f"{content['total']} per step"
            _finish(axes, [row["ranks"] for row in rows], f"{TITLES[mode]}, {per}")
        _curves(branches, growth, "branches")
        ranks, total = growth[0]["ranks"], growth[0]["batch"]
        _finish(branches, [row["branches"] for row in growth], f"{ranks} ranks, {total} per step", "branches")
        words = "; ".join(f"{row['mode']}, {row['ranks']} ranks: {_fastest(row['seconds'])}" for row in scaling)
        canvas.drawing(f"Predicted seconds per step on {content['machine']['name']}. Fastest: {words}").save(
            out / "predict.svg"
        )
        canvas.figure.savefig(out / "predict.png", dpi=PNG_DPI, facecolor="white")


def _curves(axes: Any, rows: Sequence[Mapping[str, Any]], key: str) -> None:
    placements = list(rows[0]["seconds"])
    color = colors(placements)
    for placement, marker in zip(placements, cycle(MARKERS), strict=False):
        axes.plot(
            [row[key] for row in rows],
            [row["seconds"][placement] for row in rows],
            color=color[placement],
            marker=marker,
            markersize=3.5,
            linewidth=1.2,
            label=placement,
        )


def _fastest(seconds: Mapping[str, float]) -> str:
    return min(seconds, key=lambda placement: seconds[placement])
