"""Equation of state and phonons: equal to ASE's own with a potential that ASE has; relaxation under constraints."""

from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.eos import EquationOfState
from ase.phonons import Phonons as AsePhonons
from ase.spacegroup.symmetrize import check_symmetry

from ramify.errors import RamifyError, RamifyWarning
from ramify.inference.integrations.ase import Calculator
from ramify.inference.jobs.eos import equation_of_state
from ramify.inference.jobs.phonons import phonons
from ramify.inference.jobs.relax import RelaxOptions, relax
from ramify.inference.model import Model


def test_equation_of_state_equals_ases_by_hand(tmp_path: Path) -> None:
    """Copper by EMT, whose bulk modulus is 134 GPa at its own lattice constant (ASE's documentation of EMT)."""
    atoms = bulk("Cu", a=3.6)
    found = equation_of_state(atoms, EMT(), strain=0.02, points=7)
    volumes, energies = [], []
    for a in np.linspace(3.6 * 0.98, 3.6 * 1.02, 7):
        scaled = bulk("Cu", a=a)
        scaled.calc = EMT()
        volumes.append(a**3 / 4)
        energies.append(scaled.get_potential_energy())
    volume, energy, modulus = EquationOfState(volumes, energies, eos="birchmurnaghan").fit()
    assert found.volume == pytest.approx(volume, rel=1e-6)
    assert found.energy == pytest.approx(energy, abs=1e-8)
    assert found.bulk_modulus == pytest.approx(modulus / units.GPa, rel=1e-6)
    assert found.bulk_modulus == pytest.approx(134, abs=2)
    found.draw(tmp_path / "eos.svg")
    assert "volume, Å³" in (tmp_path / "eos.svg").read_text()


def test_equation_of_state_refuses() -> None:
    with pytest.raises(RamifyError, match=r"minimum at .* outside the calculated volumes"):
        equation_of_state(bulk("Cu", a=4.0), EMT())
    with pytest.raises(RamifyError, match="points=4 is below 5"):
        equation_of_state(bulk("Cu"), EMT(), points=4)
    with pytest.raises(RamifyError, match="needs three periodic axes"):
        equation_of_state(molecule("H2O"), EMT())


def test_phonons_equal_ases(tmp_path: Path) -> None:
    """Copper by EMT: bands of the primitive cell, against ASE's finite displacements."""
    pytest.importorskip("phonopy")
    primitive = bulk("Cu", a=3.59)
    found = phonons(primitive, EMT(), supercell=(3, 3, 3), points=12)
    other = AsePhonons(primitive, EMT(), supercell=(3, 3, 3), delta=0.01, name=str(tmp_path / "phonons"))
    other.run()
    other.read(acoustic=True)
    expected = other.band_structure(primitive.cell.bandpath(npoints=12).kpts, verbose=False)
    thz = expected / units._hplanck * units._e * 1e-12  # eV to THz: E = h ν
    # ASE displaces without symmetry: it splits bands that are degenerate by up to 0.05 THz
    np.testing.assert_allclose(found.frequencies, np.sort(thz, axis=1), atol=0.05)
    assert found.frequencies.max() > 5
    integral = np.trapezoid(found.dos[1], found.dos[0])
    assert integral == pytest.approx(3.0, rel=0.02)
    assert [name for _, name in found.ticks][:2] == ["Γ|X", "W|K"]  # so few points merge them
    assert "K|U" in [name for _, name in found.ticks]
    found.draw(tmp_path / "bands.svg")
    assert "frequency, THz" in (tmp_path / "bands.svg").read_text()
    conventional = phonons(bulk("Cu", a=3.59, cubic=True), EMT(), supercell=(1, 1, 1), points=4)
    assert conventional.frequencies.shape[1] == 3


def test_phonons_off_a_minimum_warn() -> None:
    pytest.importorskip("phonopy")
    atoms = bulk("Cu", cubic=True)
    atoms.positions[0, 0] += 0.1
    with pytest.warns(RamifyWarning, match="relax the structure before its phonons"):
        phonons(atoms, EMT(), supercell=(1, 1, 1), points=4)
    with pytest.raises(RamifyError, match="need three periodic axes"):
        phonons(molecule("H2O"), EMT())


def test_relaxation_under_pressure(stiff: Model) -> None:
    """Where it ends, the stress is that of the pressure."""
    calculator = Calculator(stiff, "mptrj")
    options = RelaxOptions(fmax=1e-3, steps=1000, cell=True, optimizer="bfgs", pressure=2.0)
    found = relax(bulk("Si"), calculator, options)
    assert found.converged, found.why
    np.testing.assert_allclose(found.atoms.get_stress() / units.GPa, [-2, -2, -2, 0, 0, 0], atol=0.05)
    with pytest.raises(RamifyError, match=r"pressure=2\.0 GPa without a change of the cell"):
        relax(bulk("Si"), calculator, RelaxOptions(pressure=2.0))


def test_relaxation_that_keeps_the_symmetry(stiff: Model) -> None:
    """A stretched crystal keeps its space group; the result carries no constraint."""
    pytest.importorskip("spglib")
    atoms = bulk("Si", cubic=True)
    atoms.set_cell(atoms.cell.array * [1.0, 1.0, 1.03], scale_atoms=True)
    before = check_symmetry(atoms, 1e-4).number
    found = relax(atoms, Calculator(stiff, "mptrj"), RelaxOptions(steps=5, cell=True, symmetry=True))
    assert np.abs(found.atoms.cell.array - atoms.cell.array).max() > 1e-4
    assert check_symmetry(found.atoms, 1e-4).number == before
    assert found.atoms.constraints == []
    with pytest.raises(RamifyError, match="a space group needs three periodic axes"):
        relax(molecule("H2O"), Calculator(stiff, "qm7x"), RelaxOptions(symmetry=True))
