"""Molecular dynamics: conserved energy, temperature, and messages of errors."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.io import read, write

from ramify.errors import RamifyError, RamifyWarning
from ramify.inference.integrations.ase import Calculator
from ramify.inference.jobs.dynamics import DynamicsOptions, _Line, set_temperature, simulate
from ramify.inference.jobs.integrators import IntegratorOptions
from ramify.inference.jobs.relax import RelaxOptions, relax
from ramify.inference.jobs.simulate_file import simulate_file
from ramify.inference.model import Model


@pytest.fixture
def water(exact: Model) -> tuple[Atoms, Calculator]:
    """A relaxed molecule and a calculator for it."""
    calculator = Calculator(exact, "qm7x")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RamifyWarning)
        return relax(molecule("H2O"), calculator, RelaxOptions(fmax=0.01)).atoms.copy(), calculator


def spread(water: tuple[Atoms, Calculator], timestep: float) -> float:
    """meV/atom, how far the total energy strays in 40 fs."""
    atoms = water[0].copy()
    report = simulate(atoms, water[1], DynamicsOptions(temperature=600.0, timestep=timestep, steps=int(40 / timestep)))
    assert report.stopped == ""
    assert report.time == pytest.approx(0.04)
    assert report.spread is not None
    return report.spread


@pytest.mark.filterwarnings("ignore::ramify.errors.RamifyWarning")
def test_energy_is_conserved_to_second_order(water: tuple[Atoms, Calculator]) -> None:
    """Velocity Verlet errs with the square of the time step, if forces are the gradient of the energy."""
    coarse, fine = spread(water, 0.4), spread(water, 0.2)
    assert fine < 0.5
    assert coarse / fine == pytest.approx(4.0, rel=0.25)


@pytest.mark.filterwarnings("ignore::ramify.errors.RamifyWarning")
def test_equal_seeds_repeat(water: tuple[Atoms, Calculator]) -> None:
    ends = []
    for seed in (0, 0, 1):
        atoms = water[0].copy()
        simulate(atoms, water[1], DynamicsOptions(integrator=IntegratorOptions(ensemble="nvt"), steps=20, seed=seed))
        ends.append(atoms.positions)
    np.testing.assert_array_equal(ends[0], ends[1])
    assert np.abs(ends[0] - ends[2]).max() > 1e-3


def test_first_velocities() -> None:
    """They have the given temperature, no total momentum and, without periodic axes, no angular momentum."""
    crowd = Atoms("CHNO" * 500, np.random.default_rng(0).uniform(0, 50, (2000, 3)))
    set_temperature(crowd, 350.0, np.random.default_rng(1))
    assert crowd.get_temperature() == pytest.approx(350.0, rel=0.05)
    for symbol in "CHNO":  # the heavy ones are slower, not colder
        part = crowd[[a.index for a in crowd if a.symbol == symbol]]
        assert part.get_temperature() == pytest.approx(350.0, rel=0.1)
    np.testing.assert_allclose(crowd.get_momenta().sum(axis=0), 0.0, atol=1e-9)
    np.testing.assert_allclose(crowd.get_angular_momentum(), 0.0, atol=1e-6)


def test_the_thermostat_warms() -> None:
    """Langevin dynamics alone, against theory: a cold gas reaches T (1 - exp(-2 γ t))."""

    class Nothing(Calculator):
        def __init__(self) -> None:
            self.results = {}

        def get_forces(self, atoms: Atoms) -> np.ndarray:
            return np.zeros((len(atoms), 3))

    gas = Atoms("He1000", np.random.default_rng(0).uniform(0, 50, (1000, 3)))
    gas.set_momenta(np.zeros((1000, 3)))
    gas.calc = Nothing()
    gas.get_forces = lambda *_, **__: np.zeros((1000, 3))  # type: ignore[method-assign]
    dynamics = IntegratorOptions(ensemble="nvt", friction=0.02).make(gas, 0.5, 500.0, seed=0)
    dynamics.run(100)  # 50 fs
    expected = 500.0 * (1 - math.exp(-2 * 0.02 * 50))
    assert gas.get_temperature() == pytest.approx(expected, rel=0.08)


def test_line_through_points() -> None:
    """Against numpy, with energies that are large and hardly differ."""
    rng = np.random.default_rng(0)
    x = np.linspace(0, 7, 300)
    y = -4210.0 + 1e-4 * x + rng.normal(0, 1e-5, 300)
    line = _Line()
    for point in zip(x.tolist(), y.tolist(), strict=True):
        line.add(*point)
    slope, offset = np.polyfit(x, y - y[0], 1)
    found, about = line.fit()
    assert found == pytest.approx(slope, rel=1e-9)
    assert about == pytest.approx((y - y[0] - slope * x - offset).std(), rel=1e-6)
    assert _Line().fit() == (None, None)


@pytest.mark.filterwarnings("ignore::ramify.errors.RamifyWarning")
def test_frames_and_steps(water: tuple[Atoms, Calculator]) -> None:
    frames: list[np.ndarray] = []
    steps: list[int] = []
    atoms, calculator = water
    options = DynamicsOptions(steps=25, every=10)
    report = simulate(atoms, calculator, options, lambda now: frames.append(now.positions.copy()), steps.append)
    assert len(frames) == 4  # 0, 10, 20 and the last
    assert steps == list(range(26))
    assert (report.steps, report.time) == (25, pytest.approx(0.0125))
    np.testing.assert_array_equal(frames[-1], atoms.positions)


def test_a_simulation_that_blows_up_says_so(water: tuple[Atoms, Calculator]) -> None:
    atoms, calculator = water
    atoms.set_momenta(np.full((3, 3), 1e4) * np.arange(1, 4)[:, None])
    report = simulate(atoms, calculator, DynamicsOptions(temperature=None, steps=10))
    assert report.stopped.startswith("blown up at step 0: temperature ")
    atoms, calculator = water
    atoms.set_momenta([[0, 0, 0], [0, 0, 0], [0, 0, 0]])
    atoms.positions[1] = atoms.positions[0] + (0.06, 0, 0)
    atoms.set_momenta([[0, 0, 0], [-0.02 * 1.008 / units.fs / 0.5, 0, 0], [0, 0, 0]])
    with pytest.warns(RamifyWarning, match="closer"):
        report = simulate(atoms, calculator, DynamicsOptions(temperature=None, timestep=0.5, steps=50))
    assert report.stopped


def test_what_cannot_be_simulated(direct: Model, conservative: Model) -> None:
    water = molecule("H2O")
    with pytest.raises(RamifyError, match="branch 'bare' predicts no forces"):
        simulate(water, Calculator(direct, "bare"), DynamicsOptions())
    with pytest.raises(RamifyError, match="no temperature is given, and the structure has no velocities"):
        simulate(water, Calculator(conservative, "qm7x"), DynamicsOptions(temperature=None))
    with pytest.raises(RamifyError, match="no temperature is given, and nvt needs one"):
        simulate(
            water,
            Calculator(conservative, "qm7x"),
            DynamicsOptions(temperature=None, integrator=IntegratorOptions(ensemble="nvt")),
        )
    with pytest.warns(RamifyWarning, match="not the gradient of its energy, which is therefore not conserved"):
        simulate(water, Calculator(direct, "ani1x"), DynamicsOptions(steps=1))


@pytest.mark.filterwarnings("ignore::ramify.errors.RamifyWarning")
def test_a_file(water: tuple[Atoms, Calculator], exact: Model, tmp_path: Path) -> None:
    """A trajectory that starts from the last frame of another one continues it exactly."""
    atoms, calculator = water
    write(tmp_path / "in.xyz", [atoms, molecule("CH4")])
    with pytest.raises(RamifyError, match=r"in\.xyz holds several structures\n  fix: name one with --index"):
        simulate_file(calculator, tmp_path / "in.xyz", tmp_path / "out.extxyz", DynamicsOptions(steps=2))
    with pytest.raises(RamifyError, match=r"in\.xyz has no structure 7"):
        simulate_file(calculator, tmp_path / "in.xyz", tmp_path / "out.extxyz", DynamicsOptions(steps=2), index=7)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.xyz"]
    for name, steps, source, index, temperature in (
        ("whole", 40, "in.xyz", 0, 300.0),
        ("half", 20, "in.xyz", 0, 300.0),
    ):
        options = DynamicsOptions(steps=steps, every=20, temperature=temperature)
        simulate_file(calculator, tmp_path / source, tmp_path / f"{name}.extxyz", options, index=index)
    write(tmp_path / "end.xyz", read(tmp_path / "half.extxyz", -1), format="extxyz")
    options = DynamicsOptions(steps=20, every=20, temperature=None)
    simulate_file(calculator, tmp_path / "end.xyz", tmp_path / "rest.extxyz", options)
    whole, rest = read(tmp_path / "whole.extxyz", ":"), read(tmp_path / "rest.extxyz", ":")
    assert len(whole) == 3
    np.testing.assert_allclose(rest[-1].positions, whole[-1].positions, atol=1e-5)  # files hold eight decimals
    for frame in whole:
        assert frame.get_potential_energy() == pytest.approx(exact.predict(frame, "qm7x").energy, abs=1e-5)
    with pytest.raises(RamifyError, match=r"whole\.extxyz exists already"):
        simulate_file(calculator, tmp_path / "end.xyz", tmp_path / "whole.extxyz", options)
