"""What the general formats (extended XYZ, ASE databases, npz) share: which key holds which label, in which units."""

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from ase import units
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from ramify.errors import RamifyError, nearest
from ramify.labels import further
from ramify.sources.base import DatasetOptions
from ramify.sources.chunks import Record, composition

ENERGY_UNITS = {
    "eV": 1.0,
    "meV": 1e-3,
    "Hartree": units.Hartree,
    "Rydberg": units.Rydberg,
    "kcal/mol": units.kcal / units.mol,
    "kJ/mol": units.kJ / units.mol,
}
LENGTH_UNITS = {"Å": 1.0, "Angstrom": 1.0, "bohr": units.Bohr}
STRESS_UNITS = {"eV/Å³": 1.0, "GPa": units.GPa, "kBar": 0.1 * units.GPa}


def _composed(value: Any) -> Any:
    """`Å` may be typed as the ångström sign or as A with ring; both mean the same."""
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else value


class Units(BaseModel):
    """Units of a file's numbers; nothing in these formats says them, and the energy-force slope cannot tell."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    energy: Literal["eV", "meV", "Hartree", "Rydberg", "kcal/mol", "kJ/mol"] = "eV"
    """Unit of energies."""
    length: Annotated[Literal["Å", "Angstrom", "bohr"], BeforeValidator(_composed)] = "Å"
    """Unit of positions and cells."""
    forces: Annotated[str | None, BeforeValidator(_composed)] = None
    """Unit of forces where it is not energy/length, e.g. `Hartree/bohr` beside positions in Å."""
    stress: Annotated[Literal["eV/Å³", "GPa", "kBar"], BeforeValidator(_composed)] = "eV/Å³"
    """Unit of the stress."""

    @field_validator("forces")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None:
            energy, _, length = value.rpartition("/")
            if energy not in ENERGY_UNITS or length not in LENGTH_UNITS:
                raise ValueError(f"'{value}' is not one of {list(ENERGY_UNITS)} over one of {list(LENGTH_UNITS)}")
        return value

    @property
    def energy_factor(self) -> float:
        """Factor to eV."""
        return ENERGY_UNITS[self.energy]

    @property
    def length_factor(self) -> float:
        """Factor to Å."""
        return LENGTH_UNITS[self.length]

    @property
    def forces_factor(self) -> float:
        """Factor to eV/Å."""
        energy, _, length = (self.forces or f"{self.energy}/{self.length}").rpartition("/")
        return ENERGY_UNITS[energy] / LENGTH_UNITS[length]

    @property
    def stress_factor(self) -> float:
        """Factor to eV/Å³."""
        return STRESS_UNITS[self.stress]


class LabelledOptions(DatasetOptions):
    """Recipe keys of the formats whose files name their labels freely."""

    units: Units = Units()
    """Units of the file: `{energy: kcal/mol, length: Å}`."""
    energy_is_per_atom: bool = False
    """Whether the energies of the file are per atom."""


class AtomsOptions(LabelledOptions):
    """Recipe keys of the formats that ASE reads."""

    energy_key: str = "energy"
    """Name of the total energy."""
    forces_key: str | None = "forces"
    """Name of the forces; null reads energies only."""
    stress_key: str | None = "stress"
    """Name of the stress (6 in Voigt order xx yy zz yz xz xy, or 9); null reads none."""
    stress_sign: Literal[1, -1] = 1
    """-1 where compression is positive (VASP's OUTCAR)."""
    group_key: str | None = None
    """Name of the value that says which structures belong together; without it, the composition."""
    labels: dict[str, str] = Field({})
    """Further labels, one number by structure each, and their names in the file: `{band_gap: gap}`. In the unit that
    the label is registered with."""

    @field_validator("labels")
    @classmethod
    def _registered(cls, value: dict[str, str]) -> dict[str, str]:
        if unknown := sorted(set(value) - set(further())):
            accepted = ", ".join(further()) or "none (see docs/extending.md)"
            raise ValueError(f"labels: no label is registered as {', '.join(unknown)}; registered: {accepted}")
        return value


class Labeller:
    """Makes records out of what a file says of each structure, and knows in the end which keys it never met.

    Args:
        path: the file.
        options: the keys and units.
    """

    def __init__(self, path: Path, options: AtomsOptions) -> None:
        self._path = path
        self._options = options
        self._names: set[str] = set()
        self.structures = 0

    def record(
        self,
        found: Mapping[str, Any],
        *,
        numbers: NDArray[np.integer],
        positions: NDArray[np.floating],
        cell: NDArray[np.floating],
        pbc: NDArray[np.bool_],
        row: int,
    ) -> Record:
        """The record of one structure.

        Args:
            found: every named value that the file has for it, in the file's units.
            numbers: (n,) atomic numbers.
            positions: (n, 3) in the file's unit of length.
            cell: (3, 3) in the file's unit of length.
            pbc: (3,).
            row: position in the file.

        Raises:
            RamifyError: it lacks the value that names its group.
        """
        options, units = self._options, self._options.units
        self.structures += 1
        self._names |= found.keys()
        if options.group_key is None:
            group = composition(numbers)
        elif options.group_key in found:
            group = str(found[options.group_key])
        else:
            raise self._missing("group_key", options.group_key, set(found), f" in structure {row}")
        return Record(
            numbers=numbers,
            positions=positions * units.length_factor,
            cell=cell * units.length_factor,
            pbc=pbc,
            energy=self._energy(found.get(options.energy_key), len(numbers)),
            forces=_scaled(found, options.forces_key, units.forces_factor),
            stress=_full(_scaled(found, options.stress_key, units.stress_factor * options.stress_sign)),
            group=group,
            origin=self._path.name,
            row=row,
            labels={name: _number(found[key]) for name, key in options.labels.items() if key in found},
        )

    def check(self) -> None:
        """Raises `RamifyError` if no structure of the whole file had the energy or the forces asked for."""
        options, names = self._options, self._names
        if not self.structures:
            raise RamifyError(f"{self._path} holds no structure that can be read", fix="correct `path` or `format`")
        if options.energy_key not in names:
            raise self._missing("energy_key", options.energy_key, names)
        for label, key in options.labels.items():
            if key not in names:
                raise self._missing(f"labels.{label}", key, names)
        if options.forces_key is None or options.forces_key in names:
            return
        named_otherwise = any("force" in name.lower() for name in names)
        if named_otherwise or options.forces_key != "forces":  # else it is a file of energies
            raise self._missing("forces_key", options.forces_key, names)

    def _energy(self, value: Any, n_atoms: int) -> float | None:
        if value is None:
            return None
        flat = np.asarray(value, np.float64).reshape(-1)
        energy = float(flat[0]) if flat.size == 1 else np.nan
        return energy * self._options.units.energy_factor * (n_atoms if self._options.energy_is_per_atom else 1)

    def _missing(self, key: str, value: str, names: set[str], where: str = "") -> RamifyError:
        has = ", ".join(sorted(names)) or "no keys"
        return RamifyError(
            f"{self._path} has no '{value}' (`{key}`){where}{nearest(value, names)}; it has {has}",
            fix=f"set `{key}` to the name that the file uses" + (", or to null" if key == "forces_key" else ""),
        )


def _number(value: Any) -> float:
    """One number; NaN of anything else, which a record refuses."""
    flat = np.asarray(value).reshape(-1)
    return float(flat[0]) if flat.size == 1 and np.issubdtype(flat.dtype, np.number) else np.nan


def _scaled(found: Mapping[str, Any], key: str | None, factor: float) -> NDArray[np.float64] | None:
    value = found.get(key) if key is not None else None
    return None if value is None else np.asarray(value, np.float64) * factor


def _full(stress: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    """(3, 3) of 9 numbers or of 6 in Voigt order; anything else as it stands, for the record to refuse."""
    if stress is None or stress.size not in (6, 9):
        return stress
    if stress.size == 9:
        return stress.reshape(3, 3)
    return np.asarray(voigt_6_to_full_3x3_stress(stress.reshape(-1)))
