"""Measures of error bars against SciPy and against errors drawn from known distributions."""

import numpy as np
import pytest
from scipy.stats import norm, spearmanr

from ramify.uncertainty.measures import (
    fitted_floor,
    ml_scale,
    negative_log_likelihood,
    quality,
    rank_correlation,
    sparsification,
)

RNG = np.random.default_rng(0)
STD = RNG.lognormal(0.0, 1.0, 4000)
ERROR = 0.3 * STD * RNG.standard_normal(4000)


def test_rank_correlation_and_likelihood_are_those_of_scipy() -> None:
    found = rank_correlation(np.abs(ERROR), STD)
    assert found == pytest.approx(spearmanr(np.abs(ERROR), STD).statistic, abs=1e-12)
    assert negative_log_likelihood(ERROR, STD) == pytest.approx(-norm.logpdf(ERROR, scale=STD).mean(), rel=1e-12)
    assert rank_correlation(ERROR[:2], STD[:2]) is None


def test_the_scale_maximises_the_likelihood() -> None:
    best = ml_scale(ERROR, STD)
    assert best == pytest.approx(0.3, rel=0.05)
    least = negative_log_likelihood(ERROR, best * STD)
    assert all(negative_log_likelihood(ERROR, factor * best * STD) > least for factor in (0.9, 1.1))


def test_a_floor_is_found_where_errors_have_one() -> None:
    small, _ = fitted_floor(ERROR, STD)
    noisy = ERROR + 0.3 * np.sqrt(np.mean(STD**2)) * RNG.standard_normal(len(STD))
    large, loss = fitted_floor(noisy, STD)
    unit = np.sqrt(np.mean(STD**2))
    assert small < 0.05 * unit
    assert large == pytest.approx(unit, rel=0.4)
    assert loss < negative_log_likelihood(noisy, ml_scale(noisy, STD) * STD)


def test_quality_of_good_and_of_useless_error_bars() -> None:
    good = quality(ERROR, 0.3 * STD, float(np.sqrt(np.mean(ERROR**2))))
    assert good["coverage_1"] == pytest.approx(0.6827, abs=0.03)
    assert good["coverage_2"] == pytest.approx(0.9545, abs=0.02)
    assert good["nll"] < good["nll_constant"] - 0.3
    assert good["half_best"] <= good["half"] < 0.5
    useless = quality(ERROR, 0.3 * RNG.permutation(STD), float(np.sqrt(np.mean(ERROR**2))))
    assert abs(useless["spearman"]) < 0.05
    assert useless["half"] == pytest.approx(1.0, abs=0.1)


def test_sparsification_by_the_errors_themselves_is_the_best() -> None:
    removed, best = sparsification(ERROR, np.abs(ERROR))
    _, own = sparsification(ERROR, STD)
    assert removed[0] == 0
    assert best[0] == pytest.approx(np.abs(ERROR).mean())
    assert own[0] == pytest.approx(best[0])
    assert (best <= own + 1e-12).all()
