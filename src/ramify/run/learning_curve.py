"""Whether a run is trained to the end, from the power law of its validation curve.

Errors of neural networks fall with the number of steps as a power law, m(s) = A s^-p, until data or capacity limit them
(Hestness et al., arXiv:1712.00409; Kaplan et al., arXiv:2001.08361). A straight line is fitted to log m against log s,
over the last part of the run: the part in which the number of steps grew by `WINDOW`. Within one run the fall of the
learning rate adds to that of the steps, so the exponent is an upper bound of that between runs of different lengths
(1.1 against 0.7 in one measurement, docs/accuracy.md).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

WINDOW = 4.0
"""Last step of the fitted part divided by its first."""

MIN_POINTS = 4
"""Evaluations below which nothing is stated."""

WORTHWHILE = 0.03
"""Predicted fall of the metric for twice as many steps, as a fraction, below which a run is finished: about the
difference between two seeds (docs/accuracy.md)."""


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """The fitted end of a validation curve.

    Attributes:
        exponent: p of m(s) = A s^-p; negative where the metric rises.
        error: standard error of p.
        points: number of evaluations in the fit.
    """

    exponent: float
    error: float
    points: int

    @property
    def fall(self) -> float:
        """Predicted fall of the metric for twice as many steps, as a fraction of its last value."""
        return float(1.0 - 2.0**-self.exponent)

    @property
    def finished(self) -> bool:
        """Whether further steps are not worthwhile: the fall is small, or not larger than its uncertainty."""
        return self.fall < WORTHWHILE or self.exponent < 2.0 * self.error


def fit_power_law(steps: Sequence[float], metrics: Sequence[float]) -> PowerLaw | None:
    """Fits the end of a curve; None with too few positive, finite values."""
    pairs = [(s, m) for s, m in zip(steps, metrics, strict=True) if s > 0 and math.isfinite(m) and m > 0]
    kept = [(s, m) for s, m in pairs if s >= pairs[-1][0] / WINDOW]
    if len(kept) < MIN_POINTS:
        return None
    x, y = np.log(np.array(kept)).T
    x = x - x.mean()
    spread = float(x @ x)
    slope = float(x @ y) / spread
    rest = y - y.mean() - slope * x
    return PowerLaw(-slope, math.sqrt(float(rest @ rest) / (len(x) - 2) / spread), len(x))


def learning_curve_text(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """One sentence on whether a run is finished, from its evaluations (the `val` lines of metrics.jsonl, oldest first);
    empty where they are too few to judge."""
    steps, metrics = [e["step"] for e in evaluations], [_number(e["metric"]) for e in evaluations]
    law = fit_power_law(steps, metrics)
    if law is None:
        return ""
    found = f"the last {law.points} evaluations"
    if law.finished:
        best = min((m, s) for s, m in zip(steps, metrics, strict=True) if math.isfinite(m))
        return f"validation no longer falls ({found}, exponent {-law.exponent:.2f}; best at step {best[1]}): finished"
    return (
        f"validation falls as steps^{-law.exponent:.2f} ({found}), by up to {100 * law.fall:.0f} % for twice as many "
        "steps: not finished; raise train.epochs"
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
