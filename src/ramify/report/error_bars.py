"""The section on error bars: predicted against observed errors, coverage, sparsification, and a table."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ramify.errors import RamifyError
from ramify.evaluate.results import Results
from ramify.labels import LABELS
from ramify.report.svg import MUTED, Canvas, Drawing, line_styles, log_axis
from ramify.uncertainty.measures import (
    POINTS,
    QUANTITIES,
    Floats,
    binned,
    coverage,
    measured_quality,
    sparsification,
)
from ramify.untrusted import has_file

SHARES = np.linspace(0.02, 0.98, 49)
"""Expected fractions of the coverage."""

Points = Mapping[str, Mapping[str, Floats]]
"""Errors and error bars by dataset."""


@dataclass(frozen=True)
class ErrorBarSection:
    """Figures with captions, and by dataset and quantity the measures of `ramify.uncertainty.measures.quality`."""

    drawings: list[tuple[str, Drawing]]
    measured: dict[str, dict[str, dict[str, Any]]]


def section(results: Results, palette: Mapping[str, str]) -> ErrorBarSection | None:
    """The section; None if the run has no error bars.

    Args:
        results: the run.
        palette: colour by dataset.

    Raises:
        RamifyError: the file of the error bars is damaged.
    """
    points = {dataset: found for dataset, found in _read(results).items() if found and dataset in palette}
    if not points:
        return None
    drawings = []
    for quantity in QUANTITIES:
        of = {d: (p[f"{quantity}_error"], p[f"{quantity}_std"]) for d, p in points.items() if f"{quantity}_std" in p}
        if of:
            name = quantity.capitalize()
            drawings += [
                (f"{name}: observed against predicted error", _observed(of, quantity, palette)),
                (f"{name}: coverage", _coverage(of, quantity, palette)),
                (f"{name}: sparsification", _sparsification(of, quantity, palette)),
            ]
    return ErrorBarSection(drawings, {dataset: measured_quality(found) for dataset, found in points.items()})


def _read(results: Results) -> dict[str, dict[str, Floats]]:
    """Errors and error bars by dataset, as float64."""
    path, fix = results.path / POINTS, f"ramify calibrate {results.path}"
    if not has_file(results.path, POINTS, fix=fix):
        return {}
    found: dict[str, dict[str, Floats]] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for key in file.files:
                dataset, _, name = key.rpartition(".")
                found.setdefault(dataset, {})[name] = file[key].astype(np.float64)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RamifyError(f"{path} is damaged: {error}", fix=fix) from None
    for dataset, points in found.items():
        for name in [key.removesuffix("_error") for key in points if key.endswith("_error")]:
            columns = [points.get(f"{name}_{key}", np.zeros(0)) for key in ("error", "std", "constant")]
            if not _plausible(*columns):
                raise RamifyError(f"{path} is damaged: wrong shapes or values of '{dataset:.80}.{name:.80}'", fix=fix)
    return found


def _plausible(error: Floats, std: Floats, constant: Floats) -> bool:
    shapes = error.size > 0 and error.shape == std.shape and constant.shape == ()
    return bool(shapes and np.isfinite(error).all() and (std > 0).all() and constant > 0)


Series = Mapping[str, tuple[Floats, Floats]]
"""Errors and error bars of one quantity by dataset."""


def _observed(of: Series, quantity: str, palette: Mapping[str, str]) -> Drawing:
    """Root mean square errors against root mean square error bars, in bins of rows with similar error bars."""
    unit, styles = LABELS[quantity].error_unit, line_styles(palette)
    with Canvas(262, 232) as canvas:
        axes = canvas.axes()
        curves = {dataset: binned(error, std) for dataset, (error, std) in of.items()}
        for dataset, (x, y) in curves.items():
            axes.plot(x, y, color=palette[dataset], linestyle=styles[dataset], marker="o", markersize=3)
        values = np.concatenate([part for curve in curves.values() for part in curve])
        values = values[values > 0]
        ends = [float(values.min()) / 1.5, float(values.max()) * 1.5]
        axes.plot(ends, ends, color=MUTED, linewidth=0.8)
        axes.set(xlim=ends, ylim=ends)
        for which in ("x", "y"):
            log_axis(axes, which)
        axes.set_xlabel(f"error bar, {unit}")
        axes.set_ylabel(f"observed error, {unit}")
        return canvas.drawing(
            f"{quantity}: root mean square errors of rows with similar error bars against these; "
            "on the diagonal they are equal"
        )


def _coverage(of: Series, quantity: str, palette: Mapping[str, str]) -> Drawing:
    """Observed against expected fractions of errors within intervals."""
    styles = line_styles(palette)
    with Canvas(262, 232) as canvas:
        axes = canvas.axes()
        for dataset, (error, std) in of.items():
            axes.plot(SHARES, coverage(error, std, SHARES), color=palette[dataset], linestyle=styles[dataset])
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.set_xlabel("expected fraction")
        axes.set_ylabel("observed fraction")
        return canvas.drawing(
            f"{quantity}: fraction of errors within intervals of the error bars against the fraction expected of a "
            "normal distribution; above the diagonal, error bars are too large"
        )


def _sparsification(of: Series, quantity: str, palette: Mapping[str, str]) -> Drawing:
    """Mean error of the rest after rows with the largest error bars were removed, relative to that of all rows."""
    styles = line_styles(palette)
    with Canvas(262, 232) as canvas:
        axes = canvas.axes()
        for dataset, (error, std) in of.items():
            errors, bars = (np.linalg.norm(v.reshape(len(v), -1), axis=1) for v in (error, std))
            whole = float(errors.mean()) or 1.0
            for by, style in ((bars, styles[dataset]), (errors, (0, (1, 2)))):
                removed, rest = sparsification(errors, by)
                axes.plot(removed, rest / whole, color=palette[dataset], linestyle=style)
        axes.set(xlim=(0, 0.95), ylim=(0, None))
        axes.set_xlabel("fraction removed, largest error bars first")
        axes.set_ylabel("error of the rest / of all")
        return canvas.drawing(
            f"{quantity}: mean error of the rest after the rows with the largest error bars were removed, relative to "
            "that of all rows; dotted: the largest errors removed first"
        )
