"""Models and calculators as other tools handle them: pickled, copied, in other processes, in inference mode."""

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms

from ramify.inference.integrations.ase import Calculator
from ramify.inference.model import Model, load


def pickled(model: Any) -> Any:
    """A copy by pickle."""
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("through", [pickled, copy.deepcopy])
def test_a_copy_is_the_same_model(conservative: Model, molecules: list[Atoms], through: Callable[[Any], Any]) -> None:
    found = through(conservative)
    assert found.branches == conservative.branches
    expected, got = conservative.predict(molecules, "qm7x"), found.predict(molecules, "qm7x")
    np.testing.assert_array_equal(got.energy, expected.energy)
    np.testing.assert_array_equal(got.forces_of_atoms, expected.forces_of_atoms)
    with torch.no_grad():
        found.network.branch("qm7x").energy_scale.mul_(2)
    np.testing.assert_array_equal(conservative.predict(molecules, "qm7x").energy, expected.energy)


@pytest.mark.parametrize("through", [pickled, copy.deepcopy])
def test_a_copy_is_the_same_calculator(
    conservative: Model, crystals: list[Atoms], through: Callable[[Any], Any]
) -> None:
    calculator = Calculator(conservative, "mptrj")
    atoms = crystals[0].copy()
    atoms.calc = calculator
    expected = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    found = crystals[0].copy()
    found.calc = through(calculator)
    found.rattle(0.01, seed=1)  # nothing is answered from what was kept
    found.positions = crystals[0].positions
    np.testing.assert_allclose(found.get_potential_energy(), expected[0], atol=1e-5)
    np.testing.assert_allclose(found.get_forces(), expected[1], atol=1e-6)
    np.testing.assert_allclose(found.get_stress(), expected[2], atol=1e-7)


def _energy(work: tuple[Calculator, Atoms]) -> float:
    calculator, atoms = work
    torch.set_num_threads(1)
    atoms.calc = calculator
    return float(atoms.get_potential_energy())


def test_other_processes_take_calculators(conservative: Model, crystals: list[Atoms]) -> None:
    """As multiprocessing, joblib and dask hand work over."""
    calculator = Calculator(conservative, "mptrj")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map(_energy, [(calculator, atoms) for atoms in crystals[:2]])
    assert found == pytest.approx([_energy((calculator, atoms)) for atoms in crystals[:2]], abs=1e-5)


def test_inference_mode_changes_nothing(runs: Path, conservative: Model, molecules: list[Atoms]) -> None:
    expected = conservative.predict(molecules, "qm7x")
    with torch.inference_mode():
        within = conservative.predict(molecules, "qm7x")
        loaded = load(runs / "conservative")
    for found in (within, loaded.predict(molecules, "qm7x")):
        np.testing.assert_array_equal(found.energy, expected.energy)
        np.testing.assert_array_equal(found.forces_of_atoms, expected.forces_of_atoms)
