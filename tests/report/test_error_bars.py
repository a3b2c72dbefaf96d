"""The section of a report on error bars."""

from pathlib import Path

import numpy as np
import pytest

from ramify.errors import RamifyError
from ramify.evaluate.results import Results
from ramify.report import report
from ramify.report.error_bars import section
from ramify.report.svg import colors
from ramify.uncertainty.measures import POINTS, binned, coverage
from tests.planted import build_run
from tests.report.test_report import Page

RNG = np.random.default_rng(0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two datasets, one of which has error bars: of energies good ones, of forces half as large."""
    path = tmp_path / "run"
    build_run(path, only=("ani1x", "mptrj"))
    std, forces_std = RNG.lognormal(-4, 1, 300), RNG.lognormal(-2, 1, (500, 3))
    points = {"energy_error": std * RNG.standard_normal(300), "energy_std": std, "energy_constant": np.asarray(0.05)}
    points |= {"forces_error": forces_std * RNG.standard_normal((500, 3)), "forces_std": 0.5 * forces_std}
    points |= {"forces_constant": np.asarray(0.2)}
    np.savez(path / POINTS, **{f"ani1x.{key}": value.astype(np.float32) for key, value in points.items()})  # type: ignore[arg-type]
    return path


@pytest.mark.slow
def test_the_page_shows_them(run: Path) -> None:
    results = Results.open(run)
    found = section(results, colors(results.datasets))
    assert found is not None
    assert [caption.partition(":")[0] for caption, _ in found.drawings] == 3 * ["Energy"] + 3 * ["Forces"]
    assert set(found.measured) == {"ani1x"}
    measured = found.measured["ani1x"]
    assert measured["energy"]["coverage_1"] == pytest.approx(0.68, abs=0.08)
    assert measured["forces"]["coverage_1"] == pytest.approx(0.38, abs=0.08)  # half a standard deviation
    page = Page(report.render(results))
    text = " ".join(page.text)
    assert "bars" in page.ids
    assert "Error bars" in text
    assert f"{measured['energy']['spearman']:.2f}" in text
    (run / POINTS).unlink()
    assert "bars" not in Page(report.render(results)).ids


@pytest.mark.parametrize("damage", ["bytes", "shape", "negative"])
def test_a_damaged_file_is_named(run: Path, damage: str) -> None:
    with np.load(run / POINTS) as file:
        points = dict(file)
    if damage == "bytes":
        (run / POINTS).write_bytes(b"PK\x03\x04 nothing")
    else:
        std = points["ani1x.energy_std"]
        points["ani1x.energy_std"] = std[:-1] if damage == "shape" else -std
        np.savez(run / POINTS, **points)  # type: ignore[arg-type]
    with pytest.raises(RamifyError, match=r"uncertainty\.npz is damaged.*\n.*ramify calibrate"):
        section(Results.open(run), {"ani1x": "#000"})


def test_coverage_and_bins_of_known_errors() -> None:
    std = RNG.lognormal(0, 1, 20_000)
    error = std * RNG.standard_normal(len(std))
    expected = np.array([0.5, 0.6827, 0.9545])
    np.testing.assert_allclose(coverage(error, std, expected), expected, atol=0.015)
    predicted, observed = binned(error, std)
    assert len(predicted) == 10
    np.testing.assert_allclose(observed, predicted, rtol=0.12)
    assert (np.diff(predicted) > 0).all()
