"""Forces and stress against finite differences of the energy; continuity where neighbours come and go."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from ramify.model.multibranch import MultiBranch

from .conftest import CUTOFF, batch_of

STEP = 3e-5


def energy(model: MultiBranch, atoms: Atoms, max_neighbors: int | None = 12) -> float:
    """Total energy, eV."""
    with torch.no_grad():
        return float(model(batch_of([atoms], torch.float64, max_neighbors)).energy[0]) * len(atoms)


@pytest.mark.parametrize("message_layers", [1, 2])
def test_conservative_forces_are_minus_the_gradient(make_model: Callable, images, message_layers: int) -> None:
    """Also in crystals where every neighbourhood is cut at `max_neighbors`: the reach is differentiated too."""
    model = make_model("conservative", message_layers=message_layers)
    with torch.no_grad():
        forces = model(batch_of(images, torch.float64)).forces.numpy()
    rng = np.random.default_rng(0)
    first = 0
    for atoms in images:
        for atom in rng.integers(0, len(atoms), 2):
            direction = rng.normal(size=3)
            direction /= np.linalg.norm(direction)
            ends = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.positions[atom] += sign * STEP * direction
                ends.append(energy(model, moved))
            numeric = -(ends[0] - ends[1]) / (2 * STEP)
            assert forces[first + atom] @ direction == pytest.approx(numeric, abs=2e-7)
        first += len(atoms)
    assert np.abs(forces).max() > 0.05


def test_stress_is_the_strain_derivative_per_volume(make_model: Callable, images) -> None:
    model = make_model("conservative")
    for atoms in [a for a in images if a.pbc.all()]:
        with torch.no_grad():
            stress = model(batch_of([atoms], torch.float64), stress=True).stress[0].numpy()
        for i, j in ((0, 0), (1, 2), (0, 2)):
            ends = []
            for sign in (1, -1):
                strain = np.zeros((3, 3))
                strain[i, j] += 0.5 * sign * STEP
                strain[j, i] += 0.5 * sign * STEP
                moved = atoms.copy()
                moved.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
                ends.append(energy(model, moved))
            numeric = (ends[0] - ends[1]) / (2 * STEP) / atoms.get_volume()
            assert stress[i, j] == pytest.approx(numeric, abs=1e-6)
            assert stress[j, i] == pytest.approx(stress[i, j], abs=1e-14)


def test_tension_is_positive(make_model: Callable) -> None:
    """The sign: where energy rises with volume, stress is positive (as in ASE)."""
    model = make_model("conservative")
    atoms = bulk("Cu", cubic=True)
    wider = atoms.copy()
    wider.set_cell(atoms.cell.array * 1.001, scale_atoms=True)
    with torch.no_grad():
        stress = model(batch_of([atoms], torch.float64), stress=True).stress[0]
    rise = energy(model, wider) - energy(model, atoms)
    assert abs(rise) > 1e-5
    assert np.sign(float(stress.trace())) == np.sign(rise)


def test_energy_is_continuous_at_the_cutoff(make_model: Callable) -> None:
    model = make_model("conservative")
    apart = energy(model, Atoms("CO", positions=[[0, 0, 0], [0, 0, CUTOFF + 1e-6]]))
    inside = energy(model, Atoms("CO", positions=[[0, 0, 0], [0, 0, CUTOFF - 1e-4]]))
    bonded = energy(model, Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.1]]))
    assert inside == pytest.approx(apart, abs=1e-10)
    assert abs(bonded - apart) > 1e-3


def test_energy_is_continuous_where_neighbours_swap_ranks(make_model: Callable) -> None:
    """Two atoms trade places as the last kept and the first left out: with a plain limit the energy would jump."""
    model = make_model("conservative")

    def at(shift: float) -> Atoms:
        return Atoms("COF", positions=[[0, 0, 0], [2.0 + shift, 0, 0], [0, 2.0 - shift, 0]])

    ends = [energy(model, at(s), max_neighbors=1) for s in (-1e-7, 1e-7)]
    assert ends[0] == pytest.approx(ends[1], abs=1e-5)
    free = [energy(model, at(s), max_neighbors=None) for s in (-1e-7, 1e-7)]
    assert abs(free[0] - ends[0]) > 1e-4  # the limit did bite


def test_perfect_crystals_keep_their_symmetry(make_model: Callable) -> None:
    """24 atoms of fcc stand equally far where the 20 nearest end: none may be preferred, forces stay zero."""
    model = make_model("conservative")
    with torch.no_grad():
        predicted = model(batch_of([bulk("Cu", cubic=True)], torch.float64, 20), stress=True)
    assert predicted.forces.abs().max() < 1e-9
    stress = predicted.stress[0]
    assert (stress - torch.eye(3, dtype=torch.float64) * stress[0, 0]).abs().max() < 1e-9


def test_energy_of_a_lone_atom_is_finite_and_force_free(make_model: Callable) -> None:
    for forces in ("direct", "conservative"):
        with torch.no_grad():
            predicted = make_model(forces)(batch_of([Atoms("He")], torch.float64))
        assert torch.isfinite(predicted.energy).all()
        assert predicted.forces.abs().max() == 0


def test_branches_without_forces_say_so(make_model: Callable, images) -> None:
    with torch.no_grad():
        predicted = make_model(None)(batch_of(images, torch.float64), stress=True)
    assert torch.isnan(predicted.forces).all()
    assert torch.isnan(predicted.stress).all()
    assert torch.isfinite(predicted.energy).all()
