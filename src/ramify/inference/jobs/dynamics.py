"""Molecular dynamics with a branch: NVE and NVT, and the conservation of energy."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.velocitydistribution import Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet

from ramify.errors import RamifyError, RamifyWarning
from ramify.inference.integrations.ase import Calculator

FRICTION = 0.01
"""1/fs, friction of the Langevin thermostat: a relaxation time of 0.1 ps, as recommended by ASE."""

TOO_HOT = 100_000.0
"""K; a higher temperature means that the simulation has become unstable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicsOptions:
    """Options of a simulation.

    Attributes:
        ensemble: `nve` (velocity Verlet) or `nvt` (Langevin).
        temperature: K, of the initial velocities and of the thermostat. None keeps the velocities of the structure.
        timestep: fs.
        steps: number of steps of the whole simulation.
        every: number of steps between frames.
        seed: random seed of velocities and thermostat.
    """

    ensemble: Literal["nve", "nvt"] = "nve"
    temperature: float | None = 300.0
    timestep: float = 0.5
    steps: int = 1000
    every: int = 10
    seed: int = 0


@dataclass(frozen=True, slots=True)
class DynamicsReport:
    """The result of a simulation.

    Attributes:
        steps: number of steps taken.
        time: ps.
        temperature: K, mean over all steps.
        drift: meV/atom/ps, slope of a straight line through the total energies of all steps; None for less than three
            steps. With a thermostat it includes the energy exchanged with the thermostat.
        spread: meV/atom, standard deviation of the total energies about that line.
        stopped: reason for an early end; empty if there was none.
    """

    steps: int
    time: float
    temperature: float
    drift: float | None
    spread: float | None
    stopped: str


def simulate(
    atoms: Atoms,
    calculator: Calculator,
    options: DynamicsOptions,
    on_frame: Callable[[Atoms], None] = lambda atoms: None,
    on_step: Callable[[int], None] = lambda step: None,
) -> DynamicsReport:
    """Simulates one structure in place.

    Args:
        atoms: the structure; it is changed.
        calculator: calculator of the branch.
        options: options of the simulation.
        on_frame: called with the atoms every `options.every` steps, and at the first and the last step.
        on_step: called with the number of completed steps.

    Raises:
        RamifyError: the branch cannot predict the structure or predicts no forces, or the structure has no velocities
            and no temperature is given.

    Warns:
        RamifyWarning: direct forces, which do not conserve energy.
    """
    _check(atoms, calculator, options)
    atoms.calc = calculator
    generator = np.random.default_rng(options.seed)
    if options.temperature is not None:
        set_temperature(atoms, options.temperature, generator)
    dynamics = _dynamics(atoms, options, generator)
    energies, kelvins, stopped = _Line(), 0.0, ""
    try:
        for _ in dynamics.irun(options.steps):
            step, energy, kelvin = dynamics.nsteps, atoms.get_total_energy(), atoms.get_temperature()
            if not math.isfinite(energy) or kelvin > TOO_HOT:
                stopped = f"blown up at step {step}: temperature {kelvin:.3g} K"
                break
            energies.add(step * options.timestep * 1e-3, energy)
            kelvins += kelvin
            if step % options.every == 0 or step == options.steps:
                on_frame(atoms)
            on_step(step)
    except RamifyError as error:  # the atoms have moved to where the branch refuses to predict
        stopped = f"step {energies.count} was refused: {str(error).splitlines()[0]}"
    slope, spread = energies.fit()
    per_atom = 1e3 / len(atoms)
    return DynamicsReport(
        steps=max(energies.count - 1, 0),
        time=max(energies.count - 1, 0) * options.timestep * 1e-3,
        temperature=kelvins / max(energies.count, 1),
        drift=None if slope is None else slope * per_atom,
        spread=None if spread is None else spread * per_atom,
        stopped=stopped,
    )


def set_temperature(atoms: Atoms, temperature: float, generator: np.random.Generator) -> None:
    """Draws velocities from the Maxwell-Boltzmann distribution (K), without total momentum and, for structures without
    periodic axes, without total angular momentum."""
    width = np.sqrt(atoms.get_masses() * units.kB * temperature)
    atoms.set_momenta(generator.standard_normal((len(atoms), 3)) * width[:, None])
    Stationary(atoms)
    if not atoms.pbc.any() and len(atoms) > 1:
        ZeroRotation(atoms)


def _check(atoms: Atoms, calculator: Calculator, options: DynamicsOptions) -> None:
    branch = calculator.predictor.branch
    if branch.forces is None:
        raise RamifyError(
            f"branch '{branch.name}' predicts no forces, so it cannot run simulations",
            fix="name a branch whose datasets have forces",
        )
    if options.ensemble not in ("nve", "nvt"):
        raise RamifyError(f"ensemble '{options.ensemble}' is unknown; accepted: nve, nvt")
    if options.temperature is None and (options.ensemble == "nvt" or not atoms.has("momenta")):
        why = "nvt needs one" if options.ensemble == "nvt" else "the structure has no velocities"
        raise RamifyError(f"no temperature is given, and {why}", fix="give --temperature, in K")
    if branch.forces == "direct" and options.ensemble == "nve":
        warnings.warn(
            f"branch '{branch.name}' predicts forces directly: they are not the gradient of its energy, which is "
            "therefore not conserved",
            RamifyWarning,
            stacklevel=3,
        )


def _dynamics(atoms: Atoms, options: DynamicsOptions, generator: np.random.Generator) -> MolecularDynamics:
    timestep = options.timestep * units.fs
    if options.ensemble == "nve":
        return VelocityVerlet(atoms, timestep)
    return Langevin(
        atoms,
        timestep,
        temperature_K=options.temperature,
        friction=FRICTION / units.fs,
        fixcm=False,  # the centre-of-mass correction of ASE is not exact
        rng=generator,
    )


class _Line:
    """Streaming linear regression, with values relative to the first point."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._sums = np.zeros(6)

    @property
    def count(self) -> int:
        """Number of points so far."""
        return int(self._sums[0])

    def add(self, x: float, y: float) -> None:
        """Adds one point."""
        if self._first is None:
            self._first = y
        y -= self._first
        self._sums += (1.0, x, y, x * x, x * y, y * y)

    def fit(self) -> tuple[float | None, float | None]:
        """Slope, and standard deviation about the line; None for less than three points."""
        n, x, y, xx, xy, yy = self._sums
        if n < 3:
            return None, None
        var_x, cov, var_y = xx / n - (x / n) ** 2, xy / n - x * y / n**2, yy / n - (y / n) ** 2
        slope = cov / var_x
        return float(slope), math.sqrt(max(0.0, var_y - slope * cov))
