"""Ensembles, constants and resuming: against conserved quantities, the ideal gas and uninterrupted simulations."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator as AseCalculator
from ase.io import read, write

from ramify.errors import RamifyError
from ramify.inference.integrations.ase import Calculator
from ramify.inference.jobs.dynamics import DynamicsOptions, set_temperature, simulate
from ramify.inference.jobs.integrators import DynamicsState, IntegratorOptions
from ramify.inference.jobs.simulate_file import simulate_file
from ramify.inference.model import Model

pytestmark = pytest.mark.filterwarnings("ignore::ramify.errors.RamifyWarning")

KINDS = {
    "nve": IntegratorOptions(),
    "langevin": IntegratorOptions(ensemble="nvt", friction=0.05),
    "nose-hoover": IntegratorOptions(ensemble="nvt", thermostat="nose-hoover", tdamp=20.0),
    "isotropic": IntegratorOptions(ensemble="npt", tdamp=20.0, pdamp=50.0, pressure=1.0),
    "full": IntegratorOptions(ensemble="npt", barostat="full", tdamp=20.0, pdamp=50.0, pressure=1.0),
}


class Interrupted(Exception):
    """Stands for a signal that ends the process."""


@pytest.mark.parametrize(("kind", "suffix"), [("nve", "extxyz"), *((kind, "traj") for kind in KINDS if kind != "nve")])
def test_a_resumed_simulation_equals_an_uninterrupted_one(exact: Model, tmp_path: Path, kind: str, suffix: str) -> None:
    """Stopped between two frames, so that the last steps are repeated; then finished, and extended by more steps."""
    write(tmp_path / "in.extxyz", bulk("Si"), format="extxyz")

    def run(name: str, steps: int, resume: bool = False, stop: int = 99) -> object:
        def on_step(step: int) -> None:
            if step == stop:
                raise Interrupted

        options = DynamicsOptions(integrator=KINDS[kind], steps=steps, every=4, timestep=1.0)
        calculator = Calculator(exact, "mptrj")
        target = tmp_path / f"{name}.{suffix}"
        return simulate_file(calculator, tmp_path / "in.extxyz", target, options, resume=resume, on_step=on_step)

    whole = run("whole", 16)
    with pytest.raises(Interrupted):
        run("part", 12, stop=6)
    assert not (tmp_path / f"part.{suffix}").exists()
    with pytest.raises(RamifyError, match=r"part\..*\.part is a simulation that was stopped"):
        run("part", 12)
    run("part", 12, resume=True)
    report = run("part", 16, resume=True)
    frames, expected = (read(tmp_path / f"{name}.{suffix}", ":") for name in ("part", "whole"))
    assert (len(frames), len(expected)) == (5, 5)
    for found, there in zip(frames, expected, strict=True):
        np.testing.assert_allclose(found.positions, there.positions, atol=1e-8)
        np.testing.assert_allclose(found.get_momenta(), there.get_momenta(), atol=1e-8)
        np.testing.assert_allclose(found.cell.array, there.cell.array, atol=1e-8)
        assert found.get_potential_energy() == pytest.approx(there.get_potential_energy(), abs=1e-7)
    assert np.abs(expected[-1].positions - expected[0].positions).max() > 1e-3
    if kind in ("isotropic", "full"):
        assert np.abs(expected[-1].cell.array - expected[0].cell.array).max() > 1e-6
    for name in ("steps", "time", "temperature", "drift", "spread"):
        assert getattr(report, name) == pytest.approx(getattr(whole, name), rel=1e-5, abs=1e-7)


def test_only_the_same_simulation_is_resumed(exact: Model, tmp_path: Path) -> None:
    write(tmp_path / "in.extxyz", molecule("H2O"), format="extxyz")

    def run(seed: int, steps: int = 2) -> None:
        options = DynamicsOptions(steps=steps, every=1, seed=seed)
        simulate_file(Calculator(exact, "qm7x"), tmp_path / "in.extxyz", target, options, resume=True)

    target = tmp_path / "out.extxyz"
    run(0)
    with pytest.raises(RamifyError, match=r"out\.extxyz was begun with another structure, model, branch or option"):
        run(1)
    state = target.with_name("out.extxyz.state.npz")
    state.write_bytes(state.read_bytes()[:-30])
    with pytest.raises(RamifyError, match=r"out\.extxyz\.state\.npz is damaged"):
        run(0, 4)
    state.unlink()
    with pytest.raises(RamifyError, match=r"cannot be resumed: there is no out\.extxyz\.state\.npz"):
        run(0, 4)
    assert len(read(target, ":")) == 3


@pytest.mark.parametrize("kind", ["nose-hoover", "isotropic", "full"])
def test_the_conserved_energy_is_of_second_order(exact: Model, kind: str) -> None:
    """Energies of thermostat and barostat included."""
    spreads = []
    for timestep in (1.0, 0.5):
        atoms = bulk("Si")
        options = DynamicsOptions(integrator=KINDS[kind], timestep=timestep, steps=round(30 / timestep))
        spreads.append(simulate(atoms, Calculator(exact, "mptrj"), options).spread)
    assert spreads[0] < 1.0  # meV/atom
    assert spreads[0] / spreads[1] > 2.5


class Free(AseCalculator):
    """Atoms without interaction."""

    implemented_properties = ("energy", "forces", "stress")

    def calculate(self, *arguments: object, **options: object) -> None:
        super().calculate(*arguments, **options)
        self.results = {"energy": 0.0, "forces": np.zeros((len(self.atoms), 3)), "stress": np.zeros(6)}


def test_pressure_and_temperature_of_the_ideal_gas() -> None:
    """N k T = p V: a gas at that pressure keeps its volume, at another one its volume moves by theory's sign."""
    gas = Atoms("He999", np.random.default_rng(0).uniform(0, 30, (999, 3)), cell=[30.0] * 3, pbc=True)
    set_temperature(gas, 300.0, np.random.default_rng(1))
    gas.set_momenta(gas.get_momenta() * np.sqrt(300.0 / gas.get_temperature()))
    balance = 2 * gas.get_kinetic_energy() / (3 * gas.get_volume()) / units.GPa
    ratios = []
    for factor in (0.5, 1.0, 2.0):
        atoms = gas.copy()
        atoms.calc = Free()
        options = IntegratorOptions(ensemble="npt", pressure=factor * balance, pdamp=200.0)
        options.make(atoms, 1.0, 300.0, seed=0).run(50)
        ratios.append(atoms.get_volume() / gas.get_volume())
    assert ratios[0] > 1.001
    assert ratios[2] < 0.999
    assert abs(ratios[1] - 1) < 0.1 * min(ratios[0] - 1, 1 - ratios[2])


def test_what_npt_needs(exact: Model, direct: Model) -> None:
    npt = DynamicsOptions(integrator=KINDS["full"], steps=1)
    with pytest.raises(RamifyError, match="npt needs three periodic axes"):
        simulate(molecule("H2O"), Calculator(exact, "qm7x"), npt)
    with pytest.raises(RamifyError, match="branch 'mptrj' has direct forces and no stress, so it cannot run npt"):
        simulate(bulk("Si"), Calculator(direct, "mptrj"), npt)
    with pytest.raises(RamifyError, match="barostat 'cubic' is unknown; accepted: isotropic, full"):
        IntegratorOptions(barostat="cubic")  # type: ignore[arg-type]
    with pytest.raises(RamifyError, match=r"tdamp=0\.0 is not above 0"):
        IntegratorOptions(tdamp=0.0)


def test_a_state_is_plain_data(exact: Model, tmp_path: Path) -> None:
    """Every digit survives, the generator too."""
    states: list[DynamicsState] = []
    options = DynamicsOptions(integrator=KINDS["langevin"], steps=2, every=1)
    simulate(molecule("H2O"), Calculator(exact, "qm7x"), options, on_state=states.append)
    states[-1].write(tmp_path / "state.npz")
    found = DynamicsState.read(tmp_path / "state.npz")
    assert found.about == json.loads(json.dumps(states[-1].about))
    assert found.arrays.keys() == states[-1].arrays.keys()
    for name, values in found.arrays.items():
        np.testing.assert_array_equal(values, states[-1].arrays[name])
