"""Quality of error bars against observed errors: rank correlation, likelihood, coverage, sparsification."""

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

POINTS = "uncertainty.npz"
"""File of a run with the errors and error bars of its test split, for the report."""
FLOORS = np.geomspace(0.01, 3.0, 11)
"""Candidates of the floor of standard deviations. It is the part of the errors that the last layer does not express, of
labels or of forces that are zero by symmetry; the largest one makes error bars nearly constant."""
QUANTITIES = ("energy", "forces")


def rank_correlation(a: Floats, b: Floats) -> float | None:
    """Spearman's rank correlation of (n,) values; None for less than three. Equal values get different ranks."""
    if len(a) < 3:
        return None
    x, y = (np.argsort(np.argsort(values, kind="stable")) - (len(a) - 1) / 2 for values in (a, b))
    return float((x * y).sum() / (x * x).sum())


def negative_log_likelihood(error: Floats, std: Floats | float) -> float:
    """Mean over (n,) errors of -log of the normal density with standard deviation `std`; unit: nats."""
    variance = np.square(std)
    return float(np.mean(0.5 * np.log(2 * math.pi * variance) + np.square(error) / (2 * variance)))


def ml_scale(error: Floats, std: Floats) -> float:
    """The factor α of standard deviations (n,) that maximises the likelihood of errors (n,): α² = mean(error²/std²)."""
    return float(np.sqrt(np.mean(np.square(error / std))))


def fitted_floor(error: Floats, std: Floats) -> tuple[float, float]:
    """The t among `FLOORS` times the root mean square of std for which errors (n,) have the largest likelihood with
    standard deviations α sqrt(std² + t²) and the best α for each, and the mean negative log-likelihood with it."""
    unit = float(np.sqrt(np.mean(np.square(std)))) or 1.0
    losses = []
    for floor in FLOORS * unit:
        raised = np.hypot(std, floor)
        losses.append(negative_log_likelihood(error, ml_scale(error, raised) * raised))
    best = int(np.argmin(losses))
    return float(FLOORS[best] * unit), losses[best]


def sparsification(error: Floats, by: Floats) -> tuple[Floats, Floats]:
    """Mean absolute error of the rest after the rows with the largest values of `by` were removed.

    Args:
        error: (n,).
        by: (n,) standard deviations; with |error| instead, the best possible curve.

    Returns:
        The removed fractions (21,) from 0 to 0.95, and the errors of the rest (21,).
    """
    removed = np.linspace(0.0, 0.95, 21)
    means = np.cumsum(np.abs(error)[np.argsort(by, kind="stable")]) / np.arange(1, len(error) + 1)
    kept = np.maximum(1, np.round((1 - removed) * len(error)).astype(np.int64))
    return removed, means[kept - 1]


def quality(error: Floats, std: Floats, constant: float) -> dict[str, Any]:
    """Measures of error bars on (n,) or (n, 3) errors.

    Args:
        error: prediction minus label.
        std: standard deviations, of the same shape.
        constant: the standard deviation that a constant error bar would have: of the validation errors.

    Returns:
        `rows`, `spearman` (of the norms of |error| and of the standard deviations of rows), `nll` and `nll_constant`
        (nats per component), `coverage_1` and `coverage_2`, `half` (mean |error| of the half with the smaller error
        bars over that of all rows) and `half_best` (the same for the half with the smaller errors).
    """
    size = error.reshape(len(error), -1)
    errors, bars = np.linalg.norm(size, axis=1), np.linalg.norm(std.reshape(len(error), -1), axis=1)
    ratio = np.abs(error) / std
    kept, mean = np.argsort(bars, kind="stable")[: max(1, len(bars) // 2)], float(errors.mean())
    best = np.sort(errors)[: max(1, len(bars) // 2)]
    return {
        "rows": len(error),
        "spearman": rank_correlation(errors, bars),
        "nll": negative_log_likelihood(error, std),
        "nll_constant": negative_log_likelihood(error, constant),
        "coverage_1": float(np.mean(ratio <= 1)),
        "coverage_2": float(np.mean(ratio <= 2)),
        "half": float(errors[kept].mean()) / mean if mean else 1.0,
        "half_best": float(best.mean()) / mean if mean else 1.0,
    }


def measured_quality(points: Mapping[str, Floats]) -> dict[str, dict[str, Any]]:
    """`quality` by quantity, from arrays `QUANTITY_error`, `_std` and `_constant`."""
    return {
        name: quality(points[f"{name}_error"], points[f"{name}_std"], float(points[f"{name}_constant"]))
        for name in QUANTITIES
        if f"{name}_error" in points
    }


def coverage(error: Floats, std: Floats, expected: Floats) -> Floats:
    """Observed fractions of errors within the intervals of a normal distribution that contain `expected` fractions."""
    widths = np.array([NormalDist().inv_cdf(0.5 + 0.5 * share) for share in expected])
    return np.asarray(np.searchsorted(np.sort(np.ravel(np.abs(error) / std)), widths, side="right") / error.size)


def binned(error: Floats, std: Floats) -> tuple[Floats, Floats]:
    """Root mean squares of standard deviations and of errors, in bins of equal numbers of rows sorted by `std`; at most
    10, with 10 rows or more."""
    order = np.argsort(np.ravel(std), kind="stable")
    parts = np.array_split(order, max(1, min(10, len(order) // 10)))
    rms = [[float(np.sqrt(np.mean(np.square(np.ravel(v)[part])))) for part in parts] for v in (std, error)]
    return np.array(rms[0]), np.array(rms[1])
