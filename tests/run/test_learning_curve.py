"""The power law of a validation curve, on synthetic curves."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.run.learning_curve import fit_power_law, learning_curve_text


def lines(steps: list[int], metrics: list[float | None]) -> list[dict[str, float | int | None]]:
    return [{"step": step, "metric": metric} for step, metric in zip(steps, metrics, strict=True)]


@given(st.floats(-1.0, 2.0), st.floats(1e-4, 1e4), st.integers(6, 60), st.floats(1.0, 1e4))
def test_the_exponent_of_a_power_law_is_found(exponent: float, amplitude: float, count: int, every: float) -> None:
    steps = [every * (k + 1) for k in range(count)]
    law = fit_power_law(steps, [amplitude * s**-exponent for s in steps])
    assert law is not None
    assert law.exponent == pytest.approx(exponent, abs=1e-6)
    assert law.error < 1e-6


def test_only_the_end_counts() -> None:
    """A steep beginning does not hide a flat end."""
    steps = list(range(10, 410, 10))
    assert learning_curve_text(lines(steps, [max(1.0, 100 / s) for s in steps])).endswith("finished")


@pytest.mark.parametrize("exponent", [0.2, 0.7])
def test_a_falling_curve_is_not_finished(exponent: float) -> None:
    """The estimate of the fall for twice as many steps is right, with noise of 3 %."""
    steps, rng = [500 * (k + 1) for k in range(40)], np.random.default_rng(0)
    found = [0.4 * (s / 500) ** -exponent * float(rng.lognormal(0, 0.03)) for s in steps]
    law = fit_power_law(steps, found)
    assert law is not None
    assert abs(law.exponent - exponent) < 3 * law.error < 0.1
    assert law.fall == pytest.approx(1 - 2**-exponent, abs=0.03)
    text = learning_curve_text(lines(steps, list(found)))
    assert f"steps^{-law.exponent:.2f}" in text
    assert "not finished" in text
    assert "train.epochs" in text


@pytest.mark.parametrize("shape", ["flat", "rising", "floor", "noise"])
def test_a_curve_that_no_longer_falls_is_finished(shape: str) -> None:
    steps, rng = [100 * (k + 1) for k in range(30)], np.random.default_rng(1)
    curves = {
        "flat": [0.3] * 30,
        "rising": [0.3 + 0.01 * abs(k - 10) for k in range(30)],
        "floor": [0.3 + 0.3 * (s / 100) ** -1.5 for s in steps],
        "noise": [0.3 * float(rng.lognormal(0, 0.3)) for _ in steps],
    }
    text = learning_curve_text(lines(steps, list(curves[shape])))
    assert text.endswith(": finished")
    best = steps[int(np.argmin(curves[shape]))]
    assert f"best at step {best})" in text


def test_too_few_evaluations_say_nothing() -> None:
    assert learning_curve_text([]) == ""
    assert learning_curve_text(lines([0, 100, 200, 300], [1.0, 0.9, 0.8, 0.7])) == ""  # step 0 is no point of a log
    assert learning_curve_text(lines([10, 20, 30, 40], [None, math.nan, 0.2, 0.1])) == ""
