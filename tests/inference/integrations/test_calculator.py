"""The calculator: predictions through ASE; derivatives, equation of state, phonons."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.eos import EquationOfState
from ase.stress import full_3x3_to_voigt_6_stress
from ase.vibrations import Vibrations

from ramify.errors import RamifyError, RamifyWarning
from ramify.inference.integrations.ase import Calculator
from ramify.inference.model import Model, load


def test_equal_to_batched_predictions(
    conservative: Model, direct: Model, molecules: list[Atoms], crystals: list[Atoms]
) -> None:
    """To 1e-6 (eV per atom, eV/Å, eV/Å³), in float32; one calculator for structures of different sizes."""
    for model, branch, images in (
        (conservative, "qm7x", molecules),
        (conservative, "mptrj", crystals),
        (direct, "ani1x", [molecule("H2O"), molecule("CH4")]),
        (direct, "mptrj", crystals),
    ):
        calculator = Calculator(model, branch)
        batched = model.predict(images, branch)
        for atoms, expected in zip(images, batched, strict=True):
            atoms.calc = calculator
            assert atoms.get_potential_energy() == pytest.approx(expected.energy, abs=1e-6 * len(atoms))
            assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
            np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=1e-6)
            if expected.stress is not None:
                voigt = full_3x3_to_voigt_6_stress(expected.stress)
                np.testing.assert_allclose(atoms.get_stress(), voigt, atol=1e-6)


def test_only_what_the_branch_predicts(direct: Model, conservative: Model, crystals: list[Atoms]) -> None:
    water, crystal = molecule("H2O"), crystals[0]
    water.calc = Calculator(direct, "bare")
    assert np.isfinite(water.get_potential_energy())
    with pytest.raises(PropertyNotImplementedError):
        water.get_forces()
    crystal.calc = Calculator(direct, "mptrj")
    with pytest.raises(PropertyNotImplementedError):
        crystal.get_stress()
    water.calc = Calculator(conservative, "qm7x")
    with pytest.raises(PropertyNotImplementedError):
        water.get_stress()  # no cell to strain


def test_forces_are_the_slope_of_the_energy(stiff: Model, crystals: list[Atoms]) -> None:
    """By ASE's own finite differences, through the neighbours that are used again."""
    for atoms, branch in ((molecule("CH3CH2OH"), "qm7x"), (crystals[0], "mptrj")):
        atoms.calc = calculator = Calculator(stiff, branch)
        forces = atoms.get_forces()
        ends = [0, len(atoms) - 1]
        numeric = calculate_numerical_forces(atoms, eps=1e-4, iatoms=ends)
        np.testing.assert_allclose(forces[ends], numeric, atol=2e-5)
        assert calculator.neighbors.searches == 1


def test_stress_is_the_slope_of_the_energy(stiff: Model, crystals: list[Atoms]) -> None:
    for atoms in crystals:
        atoms.calc = Calculator(stiff, "mptrj")
        numeric = calculate_numerical_stress(atoms, eps=1e-5)
        np.testing.assert_allclose(atoms.get_stress(), numeric, atol=1e-7)


def test_equation_of_state_agrees_with_the_stress(stiff: Model) -> None:
    """Pressure is minus the slope of energy over volume; where it vanishes is the volume that ASE's fit finds."""
    atoms = bulk("Si")  # four neighbours, which the small model's limit of eight lets in
    calculator = Calculator(stiff, "mptrj")
    found = []
    for scale in np.linspace(0.9, 1.2, 61):
        scaled = atoms.copy()
        scaled.set_cell(atoms.cell.array * scale, scale_atoms=True)
        scaled.calc = calculator
        found.append((scaled.get_volume(), scaled.get_potential_energy(), -scaled.get_stress()[:3].mean()))
    volume, energy, pressure = np.array(found).T
    slope = -np.gradient(energy, volume)
    assert np.ptp(pressure) > 1e-3
    np.testing.assert_allclose(pressure[1:-1], slope[1:-1], atol=0.02 * np.abs(slope).max())
    minima = [k for k in range(3, 58) if energy[k] < min(energy[k - 1], energy[k + 1])]
    for k in minima:
        fit = EquationOfState(volume[k - 3 : k + 4], energy[k - 3 : k + 4], eos="birchmurnaghan").fit(warn=False)
        crossing = np.interp(0.0, pressure[k - 1 : k + 2][::-1], volume[k - 1 : k + 2][::-1])
        assert fit[0] == pytest.approx(crossing, rel=2e-3)


def test_vibrations_are_real_numbers_and_six_are_zero(exact: Model, tmp_path) -> None:
    """Finite differences of forces: the matrix is symmetric, and neither moving nor turning costs energy."""
    from ramify.inference.jobs.relax import RelaxOptions, relax

    relaxed = relax(molecule("H2O"), Calculator(exact, "qm7x"), RelaxOptions(fmax=1e-5, steps=2000, optimizer="bfgs"))
    atoms = relaxed.atoms.copy()
    atoms.calc = Calculator(exact, "qm7x")
    assert relaxed.converged
    vibrations = Vibrations(atoms, name=str(tmp_path / "vib"), delta=1e-3)
    vibrations.run()
    hessian = vibrations.get_vibrations().get_hessian_2d()
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-4 * np.abs(hessian).max())
    energies = np.sort(np.abs(vibrations.get_energies()))
    assert energies[:6].max() < 0.05 * energies[-1]


def test_bad_structures(conservative: Model) -> None:
    calculator = Calculator(conservative, "qm7x")
    for atoms, said in (
        (Atoms(), "no atoms"),
        (bulk("Cu"), "element that the branch never saw: it holds Cu"),
        (Atoms("H2", np.zeros((2, 3))), "two atoms on one spot"),
        (Atoms("H", cell=[1, 1, 0], pbc=True), "periodic cell without volume"),
    ):
        atoms.calc = calculator
        with pytest.raises(RamifyError, match=said):
            atoms.get_potential_energy()
    with pytest.raises(RamifyError, match="the model has 3 branches"):
        Calculator(conservative)
    with pytest.raises(RamifyError, match=r"skin=-1 is below 0"):
        Calculator(conservative, "qm7x", skin=-1)


@pytest.mark.parametrize("part", ["energy_scale", "forces_scale"])
def test_predictions_that_are_not_numbers_are_errors(runs: Path, part: str) -> None:
    """Energies, or forces alone."""
    model = load(runs / "direct")
    getattr(model.network.branch("ani1x"), part).fill_(float("nan"))
    water = molecule("H2O")
    water.calc = Calculator(model, "ani1x")
    with pytest.raises(RamifyError, match="prediction is not a number"):
        water.get_forces()


def test_one_warning_for_one_structure(conservative: Model) -> None:
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.3]])
    atoms.calc = Calculator(conservative, "qm7x")
    with pytest.warns(RamifyWarning, match="atoms closer than in the training data: 0.300 Å"):
        atoms.get_potential_energy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for z in (0.31, 0.32):
            atoms.positions[1, 2] = z
            atoms.get_potential_energy()
    another = Atoms("HO", [[0, 0, 0], [0, 0, 0.3]], calculator=atoms.calc)
    with pytest.warns(RamifyWarning, match="atoms closer"):
        another.get_potential_energy()


def test_a_path_is_enough(runs) -> None:
    water = molecule("H2O")
    water.calc = Calculator(runs / "conservative", "qm7x")
    assert np.isfinite(water.get_potential_energy())
