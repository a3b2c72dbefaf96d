"""Integrators of molecular dynamics, from ASE, and their state, from which a simulation resumes."""

import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import MTKNPT, IsotropicMTKNPT, NoseHooverChainNVT
from ase.md.verlet import VelocityVerlet
from numpy.typing import NDArray

from ramify.errors import RamifyError
from ramify.files import write_whole

Ensemble = Literal["nve", "nvt", "npt"]
Thermostat = Literal["langevin", "nose-hoover"]
Barostat = Literal["isotropic", "full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegratorOptions:
    """Ensemble and constants of an integrator.

    Attributes:
        ensemble: `nve` (velocity Verlet), `nvt`, or `npt` (Martyna, Tobias and Klein, doi:10.1063/1.467468, with
            Nosé-Hoover chains).
        thermostat: of `nvt`: `langevin`, or `nose-hoover` (a chain of three).
        barostat: of `npt`: `isotropic` keeps the shape of the cell, `full` changes all lattice vectors.
        friction: 1/fs, of the Langevin thermostat. The default is a relaxation time of 0.1 ps, as ASE recommends.
        tdamp: fs, relaxation time of a Nosé-Hoover thermostat; ASE recommends 100 time steps.
        pdamp: fs, relaxation time of the barostat; ASE recommends 1,000 time steps.
        pressure: GPa, of `npt`; compression is positive.
    """

    ensemble: Ensemble = "nve"
    thermostat: Thermostat = "langevin"
    barostat: Barostat = "isotropic"
    friction: float = 0.01
    tdamp: float = 50.0
    pdamp: float = 500.0
    pressure: float = 0.0

    def __post_init__(self) -> None:
        for name, accepted in (
            ("ensemble", ("nve", "nvt", "npt")),
            ("thermostat", ("langevin", "nose-hoover")),
            ("barostat", ("isotropic", "full")),
        ):
            if getattr(self, name) not in accepted:
                raise RamifyError(f"{name} '{getattr(self, name)}' is unknown; accepted: {', '.join(accepted)}")
        for name in ("friction", "tdamp", "pdamp"):
            if not getattr(self, name) > 0:
                raise RamifyError(f"{name}={getattr(self, name)} is not above 0", fix=f"give {name} above 0")

    def make(self, atoms: Atoms, timestep: float, temperature: float | None, seed: int) -> MolecularDynamics:
        """The integrator.

        Args:
            atoms: the structure, with its calculator and velocities.
            timestep: fs.
            temperature: K, of the thermostat; needed except for `nve`.
            seed: of the Langevin thermostat.
        """
        step = timestep * units.fs
        kelvin = math.nan if temperature is None else temperature
        if self.ensemble == "nve":
            return VelocityVerlet(atoms, step)
        if self.ensemble == "npt":
            kind = IsotropicMTKNPT if self.barostat == "isotropic" else MTKNPT
            return kind(
                atoms,
                step,
                temperature_K=kelvin,
                pressure_au=self.pressure * units.GPa,
                tdamp=self.tdamp * units.fs,
                pdamp=self.pdamp * units.fs,
            )
        if self.thermostat == "nose-hoover":
            return NoseHooverChainNVT(atoms, step, temperature_K=kelvin, tdamp=self.tdamp * units.fs)
        return Langevin(
            atoms,
            step,
            temperature_K=kelvin,
            friction=self.friction / units.fs,
            fixcm=False,  # the centre-of-mass correction of ASE is not exact
            rng=np.random.default_rng([seed, 1]),  # not the numbers of the initial velocities
        )


def conserved_energy(dynamics: MolecularDynamics) -> float:
    """eV, the conserved quantity of an integrator that has one, or else the total energy."""
    if hasattr(dynamics, "get_conserved_energy"):
        return float(dynamics.get_conserved_energy())
    return float(dynamics.atoms.get_total_energy())


@dataclass(frozen=True, slots=True)
class DynamicsState:
    """The state of a simulation after a step, exact to the bit.

    Attributes:
        about: plain data: `job`, `step`, the state of the random generator, sums over steps, size of the trajectory.
        arrays: positions, velocities and cell of the atoms, and every number of the integrator, by name.
    """

    about: Mapping[str, Any]
    arrays: Mapping[str, NDArray[np.float64]]

    @classmethod
    def of(cls, dynamics: MolecularDynamics, about: Mapping[str, Any]) -> Self:
        """The current state."""
        atoms = dynamics.atoms
        arrays = {f"atoms {name}": getattr(atoms, f"get_{name}")() for name in ("positions", "momenta")}
        arrays["atoms cell"] = atoms.cell.array
        arrays |= {name: np.array(getattr(owner, key)) for name, owner, key in _numbers(dynamics)}
        generator = dynamics.rng.bit_generator.state if isinstance(dynamics, Langevin) else None
        return cls({**about, "step": dynamics.nsteps, "generator": generator}, arrays)

    def restore(self, dynamics: MolecularDynamics) -> None:
        """Continues `dynamics`, made with the same options, from this state."""
        atoms = dynamics.atoms
        atoms.set_cell(self.arrays["atoms cell"])
        atoms.set_positions(self.arrays["atoms positions"])
        atoms.set_momenta(self.arrays["atoms momenta"])
        for name, owner, key in _numbers(dynamics):
            value = self.arrays[name]
            setattr(owner, key, value.copy() if value.ndim else float(value))
        if isinstance(dynamics, Langevin):
            dynamics.rng.bit_generator.state = self.about["generator"]
        dynamics.nsteps = self.about["step"]

    def write(self, path: Path) -> None:
        """Writes the state atomically."""
        content = io.BytesIO()
        arrays: dict[str, Any] = {"about": np.array(json.dumps(self.about)), **self.arrays}
        np.savez(content, **arrays)
        write_whole(path, content.getvalue())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a state; runs no code.

        Raises:
            RamifyError: the file is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as content:
                arrays = {name: content[name] for name in content.files if name != "about"}
                return cls(json.loads(str(content["about"])), arrays)
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            raise RamifyError(f"{path} is damaged: {error}", fix="start the simulation again in another file") from None


def _numbers(dynamics: MolecularDynamics) -> Iterator[tuple[str, Any, str]]:
    """Name, owner and attribute of every real number and array of an integrator, its thermostat and barostat."""
    for part in ("", "_thermostat", "_barostat"):
        owner = getattr(dynamics, part, None) if part else dynamics
        for key, value in vars(owner).items() if owner is not None else ():
            real = isinstance(value, float) or (isinstance(value, np.ndarray) and value.dtype.kind == "f")
            if real:
                yield f"integrator {part} {key}", owner, key
