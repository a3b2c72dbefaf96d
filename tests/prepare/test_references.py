"""Reference energies: known ones are recovered, totals keep their precision, baselines of the benchmark agree."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ase.io import read
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ramify.elements import element_features
from ramify.errors import RamifyError
from ramify.references import Fit, fit_references, reference_energy
from ramify.structures import Structures

PARTS = {"wb97x": 4, "qm7x": 6, "orca_pbe": 3, "mlearn": 4, "mad": 85}
"""The benchmark's sets and their number of elements."""


def structures(numbers: list[list[int]], energy: object) -> Structures:
    flat = [z for row in numbers for z in row]
    return Structures.make(
        n_atoms=[len(row) for row in numbers], numbers=flat, positions=np.zeros((len(flat), 3)), energy=energy
    )


def fit(data: Structures, at_once: int = 10**9, ridge: float = 0.0) -> Fit:
    def chunks() -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.float64]]]:
        for start in range(0, len(data), at_once):
            part = data.span(start, min(start + at_once, len(data)))
            yield part.n_atoms, part.numbers, part.energy

    return fit_references(chunks, np.unique(data.numbers), ridge)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    elements=st.lists(st.integers(1, 118), min_size=1, max_size=12, unique=True),
    scale=st.sampled_from([1.0, 1e3, 1e5]),
)
def test_planted_energies_are_recovered(seed: int, elements: list[int], scale: float) -> None:
    rng = np.random.default_rng(seed)
    planted = np.full(119, np.nan)
    planted[elements] = rng.normal(size=len(elements)) * scale
    numbers = [[z] * int(rng.integers(1, 5)) for z in elements]  # the pure elements: every one can be told
    numbers += [rng.choice(elements, rng.integers(1, 20)).tolist() for _ in range(40)]
    data = structures(numbers, [planted[row].sum() for row in numbers])
    found = fit(data, at_once=7)
    np.testing.assert_allclose(found.energies[elements], planted[elements], rtol=1e-10, atol=1e-10 * scale)
    assert found.rank == len(elements)
    assert found.residual_mae < 1e-10 * scale
    assert np.isnan(np.delete(found.energies, elements)).all()
    np.testing.assert_allclose(reference_energy(data, found.energies), data.energy, rtol=1e-9, atol=1e-9 * scale)


def test_chunks_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    numbers = [rng.integers(1, 20, rng.integers(1, 30)).tolist() for _ in range(300)]
    data = structures(numbers, rng.normal(size=300) * 10 - 3000)
    whole = fit(data)
    for at_once in (1, 17, 299):
        part = fit(data, at_once)
        np.testing.assert_allclose(part.energies, whole.energies, rtol=1e-9)
        assert part.residual_mae == pytest.approx(whole.residual_mae, rel=1e-9)
        assert part.residual_std == pytest.approx(whole.residual_std, rel=1e-9)


def test_agrees_with_numpy_and_states_the_residual() -> None:
    rng = np.random.default_rng(1)
    numbers = [rng.integers(1, 6, rng.integers(1, 9)).tolist() for _ in range(200)]
    data = structures(numbers, rng.normal(size=200))
    fractions = np.array([np.bincount(row, minlength=6)[1:] / len(row) for row in numbers])
    target = data.energy / data.n_atoms
    by_numpy = np.linalg.lstsq(fractions, target, rcond=None)[0]
    found = fit(data, 33)
    np.testing.assert_allclose(found.energies[1:6], by_numpy, rtol=1e-10)
    residual = target - fractions @ by_numpy
    assert found.residual_mae == pytest.approx(np.abs(residual).mean(), rel=1e-10)
    assert found.residual_std == pytest.approx(residual.std(), rel=1e-9)
    assert found.structures == 200


def test_elements_that_never_part_share_the_mean() -> None:
    """Only H2O and CO2 in one ratio each: H and O cannot be determined separately; no energy may diverge."""
    data = structures([[1, 1, 8], [1, 1, 8], [6, 8, 8]], [-2078.0, -2078.0, -5130.0])
    found = fit(data)
    assert found.rank == 2
    assert found.residual_mae < 1e-9
    mean = (2 * -2078 / 3 - 5130 / 3) / 3
    assert np.abs(found.energies[[1, 6, 8]] - mean).max() < 1100
    shifted = fit(structures([[1, 1, 8], [1, 1, 8], [6, 8, 8]], np.array([-2078.0, -2078.0, -5130.0]) + 3 * 500))
    np.testing.assert_allclose(shifted.energies[[1, 6, 8]], found.energies[[1, 6, 8]] + 500, rtol=1e-9)


@pytest.mark.parametrize("ridge", [1e-3, 0.1])
def test_a_ridge_minimises_what_it_says(ridge: float) -> None:
    """Against the normal equations of mean (y - X e)² + ridge x (e - m)ᵀ K⁻¹ (e - m), m the mean; in any chunks."""
    rng = np.random.default_rng(2)
    numbers = [rng.integers(1, 31, rng.integers(1, 4)).tolist() for _ in range(25)]  # fewer structures than elements
    data = structures(numbers, rng.normal(size=25) - 4 * np.array([len(row) for row in numbers]))
    elements = np.unique(data.numbers)
    fractions = np.array([np.bincount(row, minlength=31)[elements] / len(row) for row in numbers])
    target = data.energy / data.n_atoms
    features = element_features()[elements]
    inverse = np.linalg.inv(features @ features.T + 0.1 * np.eye(len(elements)))
    left = fractions.T @ fractions / 25 + ridge * inverse
    expected = np.linalg.solve(left, fractions.T @ target / 25 + ridge * inverse.sum(axis=1) * target.mean())
    found = fit(data, 4, ridge)
    np.testing.assert_allclose(found.energies[elements], expected, rtol=1e-9)
    assert found.rank == np.linalg.matrix_rank(fractions)
    assert fit(data, 4, 0.0).residual_mae < found.residual_mae


def test_large_totals_keep_their_precision() -> None:
    """At -29944 eV float32 would step by 2 meV; differences of 1 µeV per structure survive here."""
    offset = np.array([0.0, 1e-6, 2e-6, -3e-6])
    data = structures([[34] * 4] * 4, -29944.0 * 4 + offset)
    residual = data.energy - reference_energy(data, fit(data).energies)
    np.testing.assert_allclose(residual, offset, atol=1e-9)


def test_an_element_without_reference_is_named() -> None:
    data = structures([[1, 1], [1, 9, 92]], [0.0, 0.0])
    references = np.full(119, np.nan)
    references[1] = -13.6
    with pytest.raises(RamifyError, match=r"no reference energy for F, U \(e\.g\. in \[1\]\)"):
        reference_energy(data, references)


def test_no_structures_have_no_energy() -> None:
    assert reference_energy(structures([], []), np.zeros(119)).shape == (0,)


@pytest.mark.parametrize("name", PARTS)
def test_trivial_predictors_of_the_benchmark(shared: Path, name: str) -> None:
    """References fitted on train, evaluated on test, and forces of zero: four digits of `baseline.json`."""
    folder = shared / "benchmark" / "five"
    stated = json.loads((folder / "baseline.json").read_text())["trivial"][name]
    images = {part: read(folder / name / f"{part}.extxyz", ":") for part in ("train", "test")}
    data = {
        part: structures([a.numbers.tolist() for a in frames], [a.get_potential_energy() for a in frames])
        for part, frames in images.items()
    }
    found = fit(data["train"], 100)
    assert found.rank == PARTS[name] - (name == "orca_pbe")  # ethanol and methanol: two compositions
    test = data["test"]
    residual = (test.energy - reference_energy(test, found.energies)) / test.n_atoms
    assert round(float(np.abs(residual).mean()), 4) == stated["energy_mae"]
    forces = np.concatenate([a.get_forces() for a in images["test"]])
    assert round(float(np.abs(forces).mean()), 4) == stated["forces_mae"]
