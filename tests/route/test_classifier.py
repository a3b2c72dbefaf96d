"""The classifier against closed forms, and a calibration error that can be worked out by hand."""

import numpy as np
import pytest

from ramify.route.classifier import calibration_error, fit, fit_temperature


def test_it_finds_the_boundary_of_two_gaussians() -> None:
    """For two normal clouds of unit variance at ±1 the log odds are exactly 2 x."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 20_000)
    x = (2.0 * labels - 1.0 + rng.normal(size=len(labels)))[:, None]
    found = fit(x, labels, 2)
    logits = found.logits(np.array([[0.0], [1.0]]))
    odds = logits[:, 1] - logits[:, 0]
    np.testing.assert_allclose(odds, [0.0, 2.0], atol=0.1)


def test_a_large_class_is_not_the_likelier_one() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], [5000, 200])
    x = (2.0 * labels - 1.0 + rng.normal(size=len(labels)))[:, None]
    assert fit(x, labels, 2).probabilities(np.zeros((1, 1)))[0, 0] == pytest.approx(0.5, abs=0.1)


def test_the_temperature_undoes_overconfidence() -> None:
    """Labels drawn from the logits themselves; logits three times as large need temperature 3."""
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(20_000, 3)) * 2
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (p.cumsum(1) > rng.random((len(p), 1))).argmax(1)
    assert fit_temperature(3 * logits, labels) == pytest.approx(3.0, rel=0.05)
    best = lambda q: (q.max(1), q.argmax(1) == labels)  # noqa: E731
    hot = np.exp(3 * logits) / np.exp(3 * logits).sum(1, keepdims=True)
    assert calibration_error(*best(p)) < 0.02
    assert calibration_error(*best(hot)) > 0.1


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.9, 0.9, 0.9, 0.9, 0.5, 0.5])
    correct = np.array([True, True, False, False, True, False])
    assert calibration_error(confidence, correct) == pytest.approx(4 / 6 * 0.4)
    assert calibration_error(np.array([1.0]), np.array([True])) == 0.0
