"""Figures of a study: learning curves of all models, errors by element, scaling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ramify.elements import NUMBERS
from ramify.labels import LABELS
from ramify.report.plots import trivial_line
from ramify.report.svg import INK, MUTED, PALETTE, Canvas, Drawing, log_axis
from ramify.report.table_format import Quantity
from ramify.study.models import Kind

Curve = Sequence[tuple[float, float]]
"""(x, error) of the evaluations of one run."""

LINEAR = 20.0
"""Largest difference as a multiple of those that are shown on a linear scale."""

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


def learning_curves(
    curves: Mapping[str, Sequence[Curve]],
    *,
    dataset: str,
    quantity: Quantity,
    palette: Mapping[str, str],
    trivial: float | None,
    axis: str,
) -> Drawing | None:
    """Validation errors of one dataset during the training of every model that has it; a thin line for each seed.

    Args:
        curves: runs of each model.
        dataset, quantity: for the description.
        palette: colour of each model.
        trivial: error of the trivial predictor on the validation split.
        axis: label of the horizontal axis.
    """
    shown = {
        model: found
        for model, runs in curves.items()
        if (found := [np.array(c, np.float64).reshape(-1, 2) for c in runs if len(c)])
    }
    if not shown:
        return None
    unit = LABELS[quantity].error_unit
    with Canvas(300, 206) as canvas:
        axes = canvas.axes()
        values = [] if trivial is None else [trivial]
        for model, runs in shown.items():
            for line in runs:
                axes.plot(line[:, 0], line[:, 1], color=palette[model], linewidth=1.5 if len(runs) == 1 else 0.9)
                values += line[:, 1].tolist()
        if trivial is not None:
            trivial_line(axes, trivial)
        axes.set_ylim(min(values) / 1.2, max(values) * 1.3)
        log_axis(axes, "y")
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(axis)
        axes.set_ylabel(f"validation MAE, {unit}")
        last = ", ".join(f"{model} {np.mean([run[-1, 1] for run in runs]):.4g}" for model, runs in shown.items())
        return canvas.drawing(f"{dataset}: validation {quantity} MAE while training; at the end, in {unit}: {last}")


def element_differences(
    differences: Mapping[str, Mapping[str, float]], *, quantity: Quantity, palette: Mapping[str, str], model: str
) -> Drawing | None:
    """Error of the multi-branch model minus that of the single-dataset model, by element: a dot for each dataset.

    Args:
        differences: by dataset and element, in the error unit of `quantity`.
        quantity: energy or forces.
        palette: colour of each dataset.
        model: name of the multi-branch model.
    """
    elements = sorted({symbol for found in differences.values() for symbol in found}, key=NUMBERS.__getitem__)
    if not elements:
        return None
    unit = LABELS[quantity].error_unit
    with Canvas(max(400.0, min(960.0, 60 + 16.0 * len(elements))), 210) as canvas:
        axes = canvas.axes()
        place = {symbol: i for i, symbol in enumerate(elements)}
        for k, (dataset, found) in enumerate(differences.items()):
            shift = 0.0 if len(differences) == 1 else 0.3 * (k / (len(differences) - 1) - 0.5)
            x, y = [place[symbol] + shift for symbol in found], list(found.values())
            axes.vlines(x, 0, y, color=palette[dataset], linewidth=1, alpha=0.5)
            axes.plot(x, y, "o", color=palette[dataset], markersize=4.2, alpha=0.9)
        axes.axhline(0, color=INK, linewidth=1)
        spread = np.abs(np.concatenate([list(found.values()) for found in differences.values()]))
        axes.set_yscale("symlog", linthresh=max(1e-9, float(spread.max()) / LINEAR), linscale=0.8)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
        axes.set_xlim(-0.8, len(elements) - 0.2)
        axes.set_xticks(range(len(elements)), elements, fontsize=6.5 if len(elements) > 40 else 8.5, color=INK)
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel(f"{model} − single, {unit}")
        better = sum(value < 0 for found in differences.values() for value in found.values())
        count = sum(len(found) for found in differences.values())
        against = f"{quantity} MAE of {model} minus that of the single-dataset models"
        return canvas.drawing(f"{against}: lower in {better} of {count} pairs of a dataset and an element")


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
    with Canvas(400, 240) as canvas:
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
        axes.legend(frameon=False, fontsize=8, labelcolor=MUTED)
        words = "; ".join(
            f"{names.get(r['placement'], r['placement'])} on {r['ranks']}: {r['measured']:.3g} s" for r in own
        )
        return canvas.drawing(f"{mode} scaling, seconds per step: {words}")
