"""Figures of a study: colours of its models, scaling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ramify.report.svg import MUTED, PALETTE, Canvas, Drawing, log_axis
from ramify.study.models import Kind

COLORS: dict[Kind, str] = {"mtl": PALETTE[0], "single": PALETTE[1], "baseline": PALETTE[2]}
FURTHER = PALETTE[3:]
"""Colours of models from before the study was extended."""


def model_colors(models: Mapping[str, Kind]) -> dict[str, str]:
    """A colour for each model of several datasets, the latest of a kind first; single-dataset models share theirs."""
    latest = {kind: name for name, kind in models.items()}
    more = iter(FURTHER * len(models))
    return {
        name: COLORS[kind] if kind == "single" or latest[kind] == name else next(more) for name, kind in models.items()
    }


def scaling(rows: Sequence[Mapping[str, Any]], *, mode: str, names: Mapping[str, str]) -> Drawing | None:
    """Measured seconds per step (points) and predicted ones (lines) against ranks.

    Args:
        rows: `mode`, `placement`, `ranks`, `measured`, `predicted` (None without a prediction).
        mode: weak or strong.
        names: shown name of each placement, in order.
    """
    own = [row for row in rows if row["mode"] == mode]
    if not own:
        return None
    ranks = sorted({row["ranks"] for row in own})
    with Canvas(324, 210) as canvas:
        axes = canvas.axes()
        for placement, color in zip(names, PALETTE, strict=False):
            points = sorted(
                (r for r in own if r["placement"] == placement or r["ranks"] == 1), key=lambda row: row["ranks"]
            )
            known = [p for p in points if p["predicted"] is not None]
            axes.plot([p["ranks"] for p in points], [p["measured"] for p in points], "o", color=color, markersize=5,
                      label=names[placement])  # fmt: skip
            axes.plot([p["ranks"] for p in known], [p["predicted"] for p in known], color=color, linewidth=1.2)
        first = own[0]["measured"] if own[0]["ranks"] == ranks[0] else min(own, key=lambda r: r["ranks"])["measured"]
        ideal = [first * (n / ranks[0]) ** (0.0 if mode == "weak" else -1.0) for n in ranks]
        axes.plot(ranks, ideal, color=MUTED, linestyle=(0, (4, 2)), linewidth=1, label="ideal")
        log_axis(axes, "y")
        axes.set_xscale("log", base=2)
        axes.set_xticks(ranks, [str(n) for n in ranks])
        axes.set_xlabel("ranks")
        axes.set_ylabel("seconds per step")
        axes.legend(frameon=False, labelcolor=MUTED)
        words = "; ".join(
            f"{names.get(r['placement'], r['placement'])} on {r['ranks']}: {r['measured']:.3g} s" for r in own
        )
        return canvas.drawing(f"{mode} scaling, seconds per step: {words}")
