"""OpenMM by OpenMM-ML's interface to ASE calculators: energies, forces and boxes are passed on, failures stop it."""

from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule

from ramify.inference.integrations.ase import Calculator
from ramify.inference.model import Model

openmm = pytest.importorskip("openmm", reason="needs the package openmm")
openmmml = pytest.importorskip("openmmml", reason="needs the package openmmml")

pytestmark = pytest.mark.filterwarnings("ignore:extrapolation:ramify.errors.RamifyWarning")

ENERGY, NM = units.kJ / units.mol, units.nm


def context_of(atoms: Atoms, model: Model, branch: str) -> Any:
    """A context of OpenMM in double precision, in steps of 0.5 fs without a thermostat."""
    topology = openmm.app.Topology()
    residue = topology.addResidue("R", topology.addChain())
    for symbol in atoms.symbols:
        topology.addAtom(symbol, openmm.app.Element.getBySymbol(symbol), residue)
    if atoms.pbc.all():
        topology.setPeriodicBoxVectors(atoms.cell.array / NM * openmm.unit.nanometer)
    system = openmmml.MLPotential("ase").createSystem(topology, calculator=Calculator(model, branch))
    if atoms.pbc.all():
        system.setDefaultPeriodicBoxVectors(*(atoms.cell.array / NM))
    integrator = openmm.VerletIntegrator(0.5 * openmm.unit.femtosecond)
    found = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    found.setPositions(atoms.positions / NM)
    return found


def energies_of(context: Any) -> tuple[float, float]:
    """Potential and kinetic energy, eV."""
    state = context.getState(energy=True)
    unit = openmm.unit.kilojoule_per_mole
    return tuple(e.value_in_unit(unit) * ENERGY for e in (state.getPotentialEnergy(), state.getKineticEnergy()))


def test_equal_to_ase_and_conserves_energy(stiff: Model) -> None:
    """A molecule, and a sheared crystal in the orientation of OpenMM's boxes."""
    ethanol, crystal = molecule("CH3CH2OH"), bulk("MgO", "rocksalt", a=4.3, cubic=True)
    crystal.set_cell([[4.3, 0, 0], [0.4, 4.2, 0], [-0.3, 0.5, 4.4]], scale_atoms=True)
    for atoms in (ethanol, crystal):
        atoms.rattle(0.05, seed=1)
    for atoms, branch in ((ethanol, "qm7x"), (crystal, "mptrj")):
        context, expected = context_of(atoms, stiff, branch), stiff.predict(atoms, branch)
        assert np.abs(expected.forces).max() > 0.1
        assert energies_of(context)[0] == pytest.approx(expected.energy, abs=1e-6)
        unit = openmm.unit.kilojoule_per_mole / openmm.unit.nanometer
        forces = context.getState(forces=True).getForces(asNumpy=True).value_in_unit(unit) * ENERGY / NM
        np.testing.assert_allclose(forces, expected.forces, atol=1e-4 * np.abs(expected.forces).max())
        before = sum(energies_of(context))
        context.getIntegrator().step(10)
        assert energies_of(context)[1] > 1e-4
        assert sum(energies_of(context)) == pytest.approx(before, abs=0.05 * energies_of(context)[1])


def test_a_failed_prediction_stops_it(stiff: Model) -> None:
    context = context_of(molecule("CH4"), stiff, "qm7x")
    context.setPositions(np.zeros((5, 3)))
    with pytest.raises(openmm.OpenMMException, match="two atoms on one spot"):
        context.getIntegrator().step(1)
