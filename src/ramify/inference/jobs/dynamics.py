"""Molecular dynamics with a branch: NVE, NVT and NPT, and the conservation of energy."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from ase import Atoms, units
from ase.md.velocitydistribution import Stationary, ZeroRotation

from ramify.errors import RamifyError, RamifyWarning
from ramify.inference.integrations.ase import Calculator
from ramify.inference.jobs.integrators import DynamicsState, IntegratorOptions, conserved_energy
from ramify.uncertainty.error_bars import no_error_bars

TOO_HOT = 100_000.0
"""K; a higher temperature means that the simulation has become unstable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicsOptions:
    """Options of a simulation.

    Attributes:
        integrator: ensemble and constants of the integrator.
        temperature: K, of the initial velocities and of the thermostat. None keeps the velocities of the structure.
        timestep: fs.
        steps: number of steps of the whole simulation.
        every: number of steps between frames.
        seed: random seed of velocities and thermostat.
        max_std: eV/atom, largest standard deviation of the energy, of a model with error bars; None for no limit.
        beyond: what a step beyond `max_std` does: end the simulation, or warn once.
    """

    integrator: IntegratorOptions = field(default_factory=IntegratorOptions)
    temperature: float | None = 300.0
    timestep: float = 0.5
    steps: int = 1000
    every: int = 10
    seed: int = 0
    max_std: float | None = None
    beyond: Literal["stop", "warn"] = "stop"


@dataclass(frozen=True, slots=True)
class DynamicsReport:
    """The result of a simulation.

    Attributes:
        steps: number of steps taken.
        time: ps.
        temperature: K, mean over all steps.
        drift: meV/atom/ps, slope of a straight line through the conserved energies of all steps; None for less than
            three steps. Conserved is the total energy, with Nosé-Hoover chains together with the energies of thermostat
            and barostat. With a Langevin thermostat, the drift includes the energy exchanged with it.
        spread: meV/atom, standard deviation of the conserved energies about that line.
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
    on_state: Callable[[DynamicsState], None] | None = None,
    resume: DynamicsState | None = None,
) -> DynamicsReport:
    """Simulates one structure in place.

    Args:
        atoms: the structure; it is changed.
        calculator: calculator of the branch.
        options: options of the simulation.
        on_frame: called with the atoms every `options.every` steps, and at the first and the last step.
        on_step: called with the number of completed steps.
        on_state: called after every frame with the state of the simulation.
        resume: a state of a simulation of the same structure with the same options, but for the number of steps.

    Raises:
        RamifyError: the branch cannot predict the structure or predicts no forces, the ensemble needs a temperature, a
            stress or a periodic cell that is missing, the structure has no velocities and no temperature is given, or
            `max_std` is given for a model without error bars.

    Warns:
        RamifyWarning: direct forces, which do not conserve energy; or an error bar beyond `max_std`.
    """
    _check(atoms, calculator, options)
    atoms.calc = calculator
    if options.temperature is not None:
        set_temperature(atoms, options.temperature, np.random.default_rng(options.seed))
    dynamics = options.integrator.make(atoms, options.timestep, options.temperature, options.seed)
    sums = _Sums() if resume is None else _Sums(**resume.about["sums"])
    begun = 0
    if resume is not None:
        resume.restore(dynamics)
        begun = dynamics.nsteps
    stopped, warned = "", False
    try:
        for _ in dynamics.irun(max(0, options.steps - begun)):  # also yields before the first step
            step = dynamics.nsteps
            if resume is not None and step == begun:
                continue
            energy, kelvin = conserved_energy(dynamics), atoms.get_temperature()
            if not math.isfinite(energy) or kelvin > TOO_HOT:
                stopped = f"blown up at step {step}: temperature {kelvin:.3g} K"
                break
            if doubt := _beyond(calculator, atoms, options.max_std):
                if options.beyond == "stop":
                    stopped = f"step {step}: {doubt}"
                    on_frame(atoms)
                    break
                if not warned:
                    warnings.warn(f"step {step}: {doubt}", RamifyWarning, stacklevel=2)
                warned = True
            sums.add(step * options.timestep * 1e-3, energy, kelvin)
            if step % options.every == 0 or step == options.steps:
                on_frame(atoms)
                if on_state is not None:
                    on_state(DynamicsState.of(dynamics, {"sums": sums.to_dict()}))
            on_step(step)
    except RamifyError as error:  # the atoms have moved to where the branch refuses to predict
        stopped = f"step {sums.line.count} was refused: {str(error).splitlines()[0]}"
    return _report(sums, options, len(atoms), stopped)


def _beyond(calculator: Calculator, atoms: Atoms, most: float | None) -> str:
    """The reason to doubt the energy of the last calculation; empty if its error bar is within the limit."""
    if most is None:
        return ""
    std = calculator.results["energy_std"] / len(atoms)
    return f"standard deviation of the energy {std:.4g} eV/atom, above the limit of {most:g}" if std > most else ""


def _report(sums: "_Sums", options: DynamicsOptions, n_atoms: int, stopped: str) -> DynamicsReport:
    slope, spread = sums.line.fit()
    per_atom, count = 1e3 / n_atoms, sums.line.count
    return DynamicsReport(
        steps=max(count - 1, 0),
        time=max(count - 1, 0) * options.timestep * 1e-3,
        temperature=sums.kelvins / max(count, 1),
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
    calculator.predictor.require_forces("run simulations")
    if options.max_std is not None and not calculator.predictor.has_error_bars:
        raise no_error_bars(branch.name)
    ensemble = options.integrator.ensemble
    if options.temperature is None and (ensemble != "nve" or not atoms.has("momenta")):
        why = f"{ensemble} needs one" if ensemble != "nve" else "the structure has no velocities"
        raise RamifyError(f"no temperature is given, and {why}", fix="give --temperature, in K")
    if ensemble == "npt" and not branch.stress:
        raise RamifyError(
            f"branch '{branch.name}' has direct forces and no stress, so it cannot run npt",
            fix="run nvt, or take a model with conservative forces",
        )
    if ensemble == "npt" and not atoms.pbc.all():
        raise RamifyError(f"pbc {atoms.pbc.tolist()}: npt needs three periodic axes", fix="run nvt")
    if branch.forces == "direct" and ensemble == "nve":
        warnings.warn(
            f"branch '{branch.name}' predicts forces directly: they are not the gradient of its energy, which is "
            "therefore not conserved",
            RamifyWarning,
            stacklevel=3,
        )


class _Line:
    """Streaming linear regression, with values relative to the first point."""

    def __init__(self, first: float | None = None, sums: Sequence[float] = (0.0,) * 6) -> None:
        self._first = first
        self._sums = np.array(sums)

    @property
    def state(self) -> tuple[float | None, list[float]]:
        """The arguments that make an equal object."""
        return self._first, self._sums.tolist()

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


class _Sums:
    """Sums over the steps of a simulation: conserved energies against time, and temperatures."""

    def __init__(self, first: float | None = None, sums: Sequence[float] = (0.0,) * 6, kelvins: float = 0.0) -> None:
        self.line, self.kelvins = _Line(first, sums), kelvins

    def add(self, time: float, energy: float, kelvin: float) -> None:
        """Adds one step."""
        self.line.add(time, energy)
        self.kelvins += kelvin

    def to_dict(self) -> dict[str, object]:
        """The arguments that make an equal object."""
        first, sums = self.line.state
        return {"first": first, "sums": sums, "kelvins": self.kelvins}
