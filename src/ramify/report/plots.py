"""The figures of a report: parity, distributions of errors, errors by element, learning curves, element counts."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm, to_rgba
from numpy.typing import NDArray

from ramify.elements import NUMBERS
from ramify.evaluate.metrics import ElementErrors
from ramify.labels import LABELS, measurable
from ramify.report.svg import INK, MUTED, PAPER, Canvas, Drawing, line_styles, log_axis, plain
from ramify.report.table_format import Quantity, format_error

Array = NDArray[np.floating]
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Horizontal positions and errors of the evaluations of one run."""

FEW_POINTS = 1500
"""Largest number of points that a parity plot shows as points; more are shown as a density."""
MOST_POINTS = 2_000_000
"""Largest number of points that a density is drawn from, evenly spaced over the split."""
ELEMENTS = 37
"""Elements in a row of a figure: as many as A4 shows without shrinking the labels."""
CURVE_POINTS = 240
"""Number of points of a line, above the resolution of a figure."""


def components_of(quantity: Quantity) -> str:
    """Name of the points of a figure, e.g. `force components`."""
    names = {"energy": LABELS["energy"].title, "forces": "force components", "stress": "stress components"}
    return names.get(quantity, LABELS[quantity].title)


def parity(true: Array, predicted: Array, *, quantity: Quantity, color: str, dataset: str) -> Drawing | None:
    """Predictions against labels on equal axes; for many points, the logarithm of their density.

    Args:
        true, predicted: same shape, energies per atom (eV/atom) or force components (eV/Å); NaN is left out.
        quantity: name of the label.
        color: colour of the dataset.
        dataset: its name, for the description.

    Returns:
        The figure, or None if nothing is both labelled and predicted.
    """
    x, y = np.ravel(true).astype(np.float64), np.ravel(predicted).astype(np.float64)
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    if not len(x):
        return None
    mae, rmse = float(np.abs(y - x).mean()), float(np.sqrt(np.square(y - x).mean()))
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    pad = 0.04 * (high - low) or 0.1
    with Canvas(204, 196) as canvas:
        axes = canvas.axes()
        axes.set(xlim=(low - pad, high + pad), ylim=(low - pad, high + pad), aspect="equal")
        axes.plot([low - pad, high + pad], [low - pad, high + pad], color=MUTED, linewidth=0.8, zorder=3)
        _points(axes, x, y, color)
        axes.locator_params(nbins=5)
        unit = LABELS[quantity].error_unit
        axes.set_xlabel(f"label, {unit}")
        axes.set_ylabel(f"prediction, {unit}")
        lines = f"MAE {format_error(mae)}\nRMSE {format_error(rmse)}"
        box = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 1.5}  # points may lie below the text
        axes.text(0.04, 0.97, lines, transform=axes.transAxes, va="top", color=INK, linespacing=1.35, bbox=box)
        what = {"energy": "energies per atom", "forces": "force components"}.get(quantity, components_of(quantity))
        drawing = canvas.drawing(
            f"{dataset}: {len(x):,} predicted {what} against their labels; MAE {format_error(mae)}, "
            f"RMSE {format_error(rmse)} {unit}"
        )
        return drawing.with_data(dataset=dataset, label=quantity, **canvas.frame(axes))


def _points(axes: Axes, x: Array, y: Array, color: str) -> None:
    if len(x) <= FEW_POINTS:
        axes.scatter(x, y, s=7, color=color, alpha=0.45, linewidths=0, rasterized=True, zorder=2)
        return
    step = -(-len(x) // MOST_POINTS)
    limits = (*axes.get_xlim(), *axes.get_ylim())
    faint, full = to_rgba(color, 0.28), to_rgba(color, 1.0)
    axes.hexbin(
        x[::step],
        y[::step],
        gridsize=64,
        extent=limits,
        mincnt=1,
        norm=LogNorm(),
        cmap=LinearSegmentedColormap.from_list("density", [faint, full]),
        linewidths=0.1,
        rasterized=True,
        zorder=2,
    )


def distribution(
    errors: Mapping[str, Array], *, trivial: Mapping[str, Array], quantity: Quantity, palette: Mapping[str, str]
) -> Drawing | None:
    """Fraction of structures (or atoms) with an error below x, for each dataset; dotted: the trivial predictor.

    Args:
        errors: by dataset, absolute errors: (S,) eV/atom, or (N,) norms of the error of a force, eV/Å; NaN left out.
        trivial: errors of the trivial predictor in the same form.
        quantity: energy or forces.
        palette: colour by dataset.
    """
    kept = {d: e for d, e in ((d, _positive(e)) for d, e in errors.items()) if len(e)}
    if not kept:
        return None
    styles = line_styles(palette)
    with Canvas(324, 226) as canvas:
        axes = canvas.axes()
        for dataset, values in kept.items():
            other = _positive(trivial[dataset])
            if len(other):
                axes.plot(*_cumulative(other), color=palette[dataset], linewidth=1, linestyle=(0, (1, 2)), alpha=0.8)
            axes.plot(*_cumulative(values), color=palette[dataset], linestyle=styles[dataset])
        # forces that are zero by symmetry have rounding errors only, which would stretch the axis over ten decades
        lowest = max(
            min(float(np.quantile(values, 0.005)) for values in kept.values()),
            min(float(np.median(values)) for values in kept.values()) / 1000,
        )
        highest = max(float(v.max()) for v in (*kept.values(), *map(_positive, trivial.values())) if len(v))
        axes.set(xlim=(lowest, highest * 1.1), ylim=(0, 1.0))
        log_axis(axes, "x")
        axes.set_yticks([0, 0.25, 0.5, 0.75, 0.95], ["0", "25 %", "50 %", "75 %", "95 %"])
        structures = "structures" if quantity == "energy" else "atoms"
        error = "energy error" if quantity == "energy" else "norm of the force error"
        axes.set_xlabel(f"{error}, {LABELS[quantity].error_unit}")
        axes.set_ylabel(f"{structures} below")
        medians = ", ".join(f"{d} {format_error(float(np.median(v)))}" for d, v in kept.items())
        return canvas.drawing(
            f"Cumulative distribution of the {error} over {structures}; "
            f"medians in {LABELS[quantity].error_unit}: {medians}"
        )


def element_errors(
    errors: Mapping[str, Mapping[str, ElementErrors]], *, quantity: Quantity, palette: Mapping[str, str]
) -> Drawing | None:
    """Error of each element in each dataset: a dot per dataset, on a logarithmic axis, elements by atomic number."""
    field = f"{quantity}_mae"
    points = {
        dataset: {symbol: value for symbol, e in found.items() if (value := getattr(e, field))}
        for dataset, found in errors.items()
    }
    elements = {symbol for found in points.values() for symbol in found}
    if not elements:
        return None
    with element_canvas(elements) as canvas:
        for axes in element_dots(canvas, points, palette):
            log_axis(axes, "y")
            axes.set_ylabel(f"{'energy' if quantity == 'energy' else 'force'} MAE, {LABELS[quantity].error_unit}")
        worst = max(((v, s, d) for d, found in points.items() for s, v in found.items()), default=None)
        assert worst is not None
        return canvas.drawing(
            f"{quantity} MAE by element, {len(elements)} elements; largest {format_error(worst[0])} "
            f"{LABELS[quantity].error_unit} for {worst[1]} in {worst[2]}"
        )


def element_canvas(elements: Collection[str]) -> Canvas:
    """A canvas for `element_dots`."""
    rows, _ = _element_rows(len(elements))
    return Canvas(max(400.0, 60 + 17.0 * min(len(elements), ELEMENTS)), 30 + 180 * rows)


def element_dots(
    canvas: Canvas, points: Mapping[str, Mapping[str, float]], palette: Mapping[str, str], *, stems: bool = False
) -> list[Axes]:
    """Draws a dot for each dataset and element, by atomic number in rows; returns the axes of the rows.

    Args:
        canvas: of `element_canvas`.
        points: values by dataset and element.
        palette: colour by dataset.
        stems: also draw a line from zero to each dot.
    """
    elements = sorted({symbol for found in points.values() for symbol in found}, key=NUMBERS.__getitem__)
    _, longest = _element_rows(len(elements))
    rows = [elements[k : k + longest] for k in range(0, len(elements), longest)]
    drawn = list(canvas.figure.subplots(len(rows), 1, sharey=True, squeeze=False)[:, 0])
    for axes, row in zip(drawn, rows, strict=True):
        for k, (dataset, found) in enumerate(points.items()):
            shift = 0.0 if len(points) == 1 else 0.3 * (k / (len(points) - 1) - 0.5)
            places = {place + shift: found[symbol] for place, symbol in enumerate(row) if symbol in found}
            if stems:
                axes.vlines(list(places), 0, list(places.values()), color=palette[dataset], linewidth=1, alpha=0.5)
            axes.plot(list(places), list(places.values()), "o", color=palette[dataset], markersize=4.4, alpha=0.9)
        axes.set_xlim(-0.8, len(rows[0]) - 0.2)
        axes.set_xticks(range(len(row)), row, color=INK)
        axes.tick_params(axis="x", length=0)
    return drawn


def _element_rows(elements: int) -> tuple[int, int]:
    """The number of rows, of at most `ELEMENTS` and about equal length, and the length of the longest."""
    rows = math.ceil(elements / ELEMENTS)
    return rows, math.ceil(elements / rows)


def learning_curve(
    val: Sequence[Mapping[str, Any]], *, dataset: str, quantity: Quantity, color: str, epoch: float | None
) -> Drawing | None:
    """Validation MAE of one dataset against epochs, with the trivial MAE and a ring at the evaluated `epoch`."""
    (x, y), trivial = validation_curve(val, dataset, quantity)
    if not len(x):
        return None
    with Canvas(204, 196) as canvas:
        axes = canvas.axes()
        axes.plot(x, y, color=color)
        _mark_epoch(axes, x, y, epoch, color)
        if trivial is not None:
            trivial_line(axes, trivial)
            axes.set_ylim(min(y.min(), trivial) / 1.25, max(y.max(), trivial) * 1.35)
        log_axis(axes, "y")
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"validation MAE, {LABELS[quantity].error_unit}")
        against = f", trivial {format_error(trivial)}" if trivial is not None else ""
        return canvas.drawing(
            f"{dataset}: validation {quantity} MAE from {format_error(y[0])} at the first to {format_error(y[-1])} "
            f"{LABELS[quantity].error_unit} at the last evaluation{against}"
        )


def relative_curves(
    val: Sequence[Mapping[str, Any]], *, quantity: Quantity, palette: Mapping[str, str], epoch: float | None
) -> Drawing | None:
    """Ratio of the validation MAE to the trivial MAE for all datasets; below 1 the model is better."""
    curves = {dataset: validation_curve(val, dataset, quantity) for dataset in palette}
    shown = {
        d: (x, y / trivial)
        for d, ((x, y), trivial) in curves.items()
        if len(x) and trivial and measurable(quantity, trivial)
    }
    if not shown:
        return None
    styles = line_styles(palette)
    with Canvas(324, 210) as canvas:
        axes = canvas.axes()
        for dataset, (x, y) in shown.items():
            axes.plot(x, y, color=palette[dataset], linestyle=styles[dataset])
            _mark_epoch(axes, x, y, epoch, palette[dataset])
        trivial_line(axes, 1.0)
        values = np.concatenate([y for _, y in shown.values()])
        axes.set_ylim(min(values.min(), 1) / 1.2, max(values.max(), 1) * 1.3)
        log_axis(axes, "y")
        axes.set_xlabel("epoch")
        axes.set_ylabel("validation MAE / trivial MAE")
        last = ", ".join(f"{d} {y[-1]:.2f}" for d, (_, y) in shown.items())
        return canvas.drawing(f"Validation {quantity} MAE relative to the trivial predictor; at the last: {last}")


def training_curve(train: Sequence[Mapping[str, Any]], *, key: str, label: str) -> Drawing | None:
    """One logged number (`loss`, `lr`, `grad_norm`) against epochs; many are averaged, with their range shaded."""
    pairs = [(r["epoch"], r[key]) for r in train if r.get(key) is not None and np.isfinite(r[key])]
    if not pairs:
        return None
    x, y = np.array(pairs, np.float64).T
    with Canvas(272, 172) as canvas:
        axes = canvas.axes()
        if len(x) > 2 * CURVE_POINTS:
            bins = np.array_split(np.arange(len(x)), CURVE_POINTS)
            center = np.array([x[b].mean() for b in bins])
            low, high = (np.array([np.quantile(y[b], q) for b in bins]) for q in (0.05, 0.95))
            axes.fill_between(center, low, high, color=INK, alpha=0.16, linewidth=0)
            axes.plot(center, [y[b].mean() for b in bins], color=INK, linewidth=1.2)
        else:
            axes.plot(x, y, color=INK, linewidth=1.2)
        if (y > 0).all() and y.max() / y.min() > 5:
            log_axis(axes, "y")
        else:
            axes.ticklabel_format(axis="y", useOffset=False)
            axes.yaxis.set_major_formatter(lambda value, _: plain(value))
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        return canvas.drawing(f"{label} during training: first {y[0]:.4g}, last {y[-1]:.4g}, lowest {y.min():.4g}")


def validation_curve(
    val: Sequence[Mapping[str, Any]], dataset: str, quantity: Quantity, axis: str = "epoch"
) -> tuple[Curve, float | None]:
    """The MAE of the evaluations of a run, those that a logarithmic axis can show, and the trivial MAE.

    Args:
        val: the `val` lines of metrics.jsonl.
        dataset, quantity: of the errors.
        axis: key of the horizontal positions: `epoch`, `step` or `time`.
    """
    records = [(r[axis], r["datasets"].get(dataset) or {}) for r in val]
    pairs = [(at, d[f"{quantity}_mae"]) for at, d in records if d.get(f"{quantity}_mae") is not None]
    x, y = np.array([(at, mae) for at, mae in pairs if np.isfinite(mae) and mae > 0], np.float64).reshape(-1, 2).T
    trivial = [t for _, d in records if (t := d.get(f"trivial_{quantity}_mae")) is not None]
    return (x, y), trivial[-1] if trivial else None


def trivial_line(axes: Axes, value: float) -> None:
    """Draws the error of the trivial predictor."""
    axes.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (4, 2)))
    axes.annotate("trivial", (1, value), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points",
                  ha="right", color=MUTED)  # fmt: skip


def _mark_epoch(axes: Axes, x: Array, y: Array, epoch: float | None, color: str) -> None:
    """Draws a ring at the evaluated checkpoint on a curve."""
    at = np.flatnonzero(x == epoch)
    axes.scatter(x[at], y[at], s=36, facecolors=PAPER, edgecolors=color, linewidths=1.6, clip_on=False, zorder=3)


def _positive(values: Array) -> Array:
    """Finite values, zeros replaced by the smallest positive value, for a logarithmic axis."""
    finite = values[np.isfinite(values)].astype(np.float64)
    positive = finite[finite > 0]
    return np.maximum(finite, positive.min()) if len(positive) else positive


def _cumulative(values: Array) -> tuple[Array, Array]:
    """(x, fraction of values up to x) at quantiles, densely spaced in the tails."""
    tails = np.linspace(0, 0.02, 12)[:-1], np.linspace(0.98, 1, 40)[1:]
    fractions = np.concatenate([tails[0], np.linspace(0.02, 0.98, 120), tails[1]])
    return np.quantile(values, fractions), fractions
