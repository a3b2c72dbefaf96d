"""Figures that compare models: learning curves over each other, differences by element."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ramify.evaluate.results import Results
from ramify.labels import LABELS
from ramify.report.plots import Curve, element_canvas, element_dots, trivial_line
from ramify.report.svg import INK, Canvas, Drawing, log_axis
from ramify.report.table_format import Quantity

LINEAR = 20.0
"""Largest difference as a multiple of those that are shown on a linear scale, rounded up to a power of ten."""


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
    shown = {model: found for model, runs in curves.items() if (found := [run for run in runs if len(run[0])])}
    if not shown:
        return None
    unit = LABELS[quantity].error_unit
    with Canvas(300, 206) as canvas:
        axes = canvas.axes()
        values = [] if trivial is None else [trivial]
        for model, runs in shown.items():
            for x, y in runs:
                axes.plot(x, y, color=palette[model], linewidth=1.5 if len(runs) == 1 else 0.9)
                values += y.tolist()
        if trivial is not None:
            trivial_line(axes, trivial)
        axes.set_ylim(min(values) / 1.2, max(values) * 1.3)
        log_axis(axes, "y")
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(axis)
        axes.set_ylabel(f"validation MAE, {unit}")
        last = ", ".join(f"{model} {np.mean([y[-1] for _, y in runs]):.4g}" for model, runs in shown.items())
        return canvas.drawing(f"{dataset}: validation {quantity} MAE while training; at the end, in {unit}: {last}")


def element_differences(
    differences: Mapping[str, Mapping[str, float]],
    *,
    quantity: Quantity,
    palette: Mapping[str, str],
    model: str,
    against: str,
    axis: str,
) -> Drawing | None:
    """Error of one model minus that of another, by element: a dot for each dataset.

    Args:
        differences: by dataset and element, in the error unit of `quantity`.
        quantity: energy or forces.
        palette: colour of each dataset.
        model: name of the model.
        against: name of the other.
        axis: label of the vertical axis, without the unit.
    """
    elements = {symbol for found in differences.values() for symbol in found}
    if not elements:
        return None
    with element_canvas(elements) as canvas:
        spread = np.abs(np.concatenate([list(found.values()) for found in differences.values()]))
        linear = 10 ** math.ceil(math.log10(max(1e-9, float(spread.max()) / LINEAR)))  # powers of ten have a tick
        for axes in element_dots(canvas, differences, palette, stems=True):
            axes.axhline(0, color=INK, linewidth=1)
            axes.set_yscale("symlog", linthresh=linear, linscale=0.8)
            axes.margins(y=0.06)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
            axes.set_ylabel(f"{axis}, {LABELS[quantity].error_unit}")
        better = sum(value < 0 for found in differences.values() for value in found.values())
        count = sum(len(found) for found in differences.values())
        what = f"{quantity} MAE of {model} minus that of {against}"
        return canvas.drawing(f"{what}: lower in {better} of {count} pairs of a dataset and an element")


def errors_by_element(results: Results, dataset: str, quantity: Quantity) -> dict[str, float]:
    """MAE of each element in a dataset, predicted by its own branch; empty without saved predictions."""
    found = results.predictions(dataset)
    values = {} if found is None else {s: getattr(e, f"{quantity}_mae") for s, e in found.by_element().items()}
    return {symbol: value for symbol, value in values.items() if value is not None}
