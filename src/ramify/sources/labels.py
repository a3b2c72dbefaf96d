"""Recipe keys and conversion of labels in the general formats (extended XYZ, ASE databases, ...): names and units."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from ramify.errors import RamifyError, nearest
from ramify.labels import further
from ramify.sources.chunks import (
    MALFORMED_ENERGY,
    MALFORMED_FORCES,
    MALFORMED_STRESS,
    NO_GROUP,
    STRESS_WITHOUT_CELL,
    Record,
    UnusableError,
    as_floats,
    check_numbers,
    composition,
)
from ramify.sources.quarantine import Quarantine
from ramify.sources.states import UNREAD, StateOptions, states_unusual
from ramify.sources.units import PER_ATOM, Units, known_unit, stated_units, unit_factor, units_in_names, with_stated
from ramify.sources.where import COLUMNS, left_out, rejected_by

UNREAD_STRESS = "stress or virial under another key, not read"
CONTRADICTING_STRESS = "stress and virial contradict each other"

FILE = "file"
"""`group_key: file`, unless structures have a value of this name."""

VIRIAL_TOLERANCE = 0.01
"""Maximum difference of a stress from -virial / volume, relative to the largest component: accepts labels written with
three digits, but not another sign, unit or convention."""


class LabelledOptions(StateOptions):
    """Recipe keys of the formats whose labels have arbitrary names."""

    units: Units = Units()
    """Units of the file: `{energy: kcal/mol, length: Å}`. Units stated in the file are used by default, and must agree
    with this key."""
    energy_is_per_atom: bool = False
    """Whether the energies of the file are per atom."""


class AtomsOptions(LabelledOptions):
    """Recipe keys of the formats read by ASE."""

    names_values: ClassVar[bool] = True

    energy_key: str = "energy"
    """Name of the total energy."""
    forces_key: str | None = "forces"
    """Name of the forces; null reads energies only."""
    stress_key: str | None = "stress"
    """Name of the stress (6 in Voigt order xx yy zz yz xz xy, or 9); null reads none."""
    stress_sign: Literal[1, -1] = 1
    """-1 where compression is positive (VASP's OUTCAR)."""
    virial_key: str | None = None
    """Name of the virial, minus the derivative of the energy with respect to strain, in units of energy (6 or 9
    numbers): the stress is -virial / volume."""
    group_key: str | None = None
    """Name of the value that identifies the group of a structure, or `file`: the structures of a file are one group (a
    trajectory per file). By default, groups are compositions."""
    labels: dict[str, str] = Field({})
    """Further labels with one number per structure, and their names in the file: `{band_gap: gap}`. In the unit with
    which the label is registered."""

    @field_validator("labels")
    @classmethod
    def _registered(cls, value: dict[str, str]) -> dict[str, str]:
        if unknown := sorted(set(value) - set(further())):
            accepted = ", ".join(further()) or "none (see docs/extending.md)"
            raise ValueError(f"labels: no label is registered as {', '.join(unknown)}; registered: {accepted}")
        return value

    @model_validator(mode="after")
    def _virial_is_no_stress(self) -> "AtomsOptions":
        key = (self.stress_key or "").lower()
        if "virial" in key and "stress" not in key:
            raise ValueError(
                f"stress_key: '{self.stress_key}' is a virial (an energy), not a stress; set "
                f"`virial_key: {self.stress_key}`: the stress is then -virial / volume"
            )
        return self


class Labeller:
    """Converts the named values of each structure to records, and checks at the end that all keys were found.

    Args:
        path: the file.
        options: keys and units.
        quarantine: receives unusable structures and remarks.
        units: units of the file; by default those of the options.
    """

    def __init__(self, path: Path, options: AtomsOptions, quarantine: Quarantine, units: Units | None = None) -> None:
        self._path = path
        self._options = options
        self._quarantine = quarantine
        self._units = units or options.units
        self._stated: dict[str, str] = {}
        self._states_read = {
            "charge": options.charge_key is not None or options.charge is not None,
            "spin": options.spin_key is not None or options.spin is not None,
        }
        self._names: set[str] = set()
        self._stress_like: set[str] = set()
        self._unread = self._without_cell = self._unread_states = 0
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
        origin: str | None = None,
    ) -> Record | None:
        """Returns the record of one structure, or None if it cannot be used and was added to the quarantine.

        Args:
            found: all named values of the structure, in the units of the file.
            numbers: (n,) atomic numbers.
            positions: (n, 3) in the file's unit of length.
            cell: (3, 3) in the file's unit of length.
            pbc: (3,).
            row: position in the file, or in `origin`.
            origin: the file and the path inside it; None for the file.

        Raises:
            RamifyError: the structure states units that contradict the recipe or earlier structures, or unknown units.
        """
        self._take_units(found, row)
        options, units = self._options, self._units
        self.structures += 1
        self._names |= {name for name, value in found.items() if value is not None}
        alike = {name for name, value in found.items() if _is_stress(name, value)}
        self._stress_like |= alike
        origin = origin or self._path.name
        self._unread_states += states_unusual(found, self._states_read)
        if (name := rejected_by(options.where, found, options.by_column())) is not None:
            self._quarantine.add(f"{origin}[{row}]", left_out(name), f"{found.get(name)!r}")
            return None
        try:
            check_numbers(numbers)
            forces = found.get(options.forces_key) if options.forces_key is not None else None
            return Record(
                numbers=numbers,
                positions=positions * units.length_factor,
                cell=cell * units.length_factor,
                pbc=pbc,
                energy=self._energy(found.get(options.energy_key), len(numbers)),
                forces=None if forces is None else as_floats(forces, MALFORMED_FORCES, "forces") * units.forces_factor,
                stress=self._stress(found, cell * units.length_factor, alike),
                charge=options.charge_of(None if options.charge_key is None else found.get(options.charge_key)),
                spin=options.spin_of(None if options.spin_key is None else found.get(options.spin_key)),
                group=self._group(found, numbers),
                origin=origin,
                row=row,
                labels={n: _number(found[key]) for n, key in options.labels.items() if found.get(key) is not None},
            )
        except UnusableError as error:
            self._quarantine.add(f"{origin}[{row}]", error.reason, error.detail)
            return None

    def check(self) -> None:
        """Raises `RamifyError` if no structure of the file had a label or group of the recipe."""
        options, names = self._options, self._names
        if not self.structures:
            tried = self._quarantine.summary()
            raise RamifyError(
                f"{self._path} holds no structure that can be read" + (f": {tried}" if tried else ""),
                fix="correct `path`, `format` or the records",
            )
        for name in options.where:
            if name not in (*COLUMNS, *options.by_column()) and name not in names:
                raise self._missing("where", name)
        for key in ("charge_key", "spin_key"):
            if (stated := getattr(options, key)) is not None and stated not in names:
                raise self._missing(key, stated)
        if options.group_key not in (None, FILE) and options.group_key not in names:
            raise self._missing("group_key", str(options.group_key))
        if options.energy_key not in names:
            raise self._missing("energy_key", options.energy_key)
        for label, key in options.labels.items():
            if key not in names:
                raise self._missing(f"labels.{label}", key)
        if options.forces_key is not None and options.forces_key not in names:
            named_otherwise = any("force" in name.lower() for name in names)
            if named_otherwise or options.forces_key != "forces":  # else the file has energies only
                raise self._missing("forces_key", options.forces_key)
        if self._unread_states:
            self._quarantine.remark(
                self._path.name, UNREAD, "charge_key or spin_key would read it", count=self._unread_states
            )
        self._check_stress()

    def _take_units(self, found: Mapping[str, Any], row: int) -> None:
        """Takes the units that the first structure states; later ones must not state others.

        Raises:
            RamifyError: they do, or they contradict the recipe, or are unknown.
        """
        options = self._options
        names = {"energy": options.energy_key, "forces": options.forces_key}
        stated = stated_units(found, **names, stress=options.stress_key, virial=options.virial_key)
        if not self.structures:
            stated = units_in_names(options.units, **names, stress=options.stress_key) | stated
        if stated == self._stated:
            return
        virial = stated.pop("virial", None)
        if not self.structures:
            self._units = with_stated(self._path, self._units, stated, energy_is_per_atom=options.energy_is_per_atom)
        if options.virial_key is not None and virial is not None:
            self._compare("energy", "virial", virial, row)
        for kind, spelling in stated.items() if self.structures else ():
            self._compare(kind, kind, spelling, row)
        self._stated = stated | ({} if virial is None else {"virial": virial})

    def _compare(self, kind: str, name: str, spelling: str, row: int) -> None:
        """Compares the unit that a structure states for `name` with that in which `kind` is read."""
        unit = known_unit(kind, PER_ATOM.sub("", spelling))
        factor = getattr(self._units, f"{kind}_factor")
        if unit is None or abs(unit_factor(kind, unit) / factor - 1) > 1e-9:
            reading = getattr(self._units, kind) or f"{self._units.energy}/{self._units.length}"
            raise RamifyError(
                f"{self._path}: structure {row} states its {name} in {spelling}, the file is read with {kind} in "
                f"{reading}",
                fix="convert the file to one unit, or make one dataset per unit",
            )

    def _check_stress(self) -> None:
        options, names = self._options, self._names
        if options.virial_key is not None and options.virial_key not in names:
            raise self._missing("virial_key", options.virial_key)
        if options.stress_key is not None and options.stress_key not in names and options.virial_key is None:
            alike = self._stress_like
            virial = next((name for name in sorted(alike) if "virial" in name.lower()), None)
            if virial is not None:
                raise RamifyError(
                    f"{self._path} has no '{options.stress_key}' (`stress_key`), but it has a virial, '{virial}'",
                    fix=f"set `virial_key: {virial}` to read the stress as -virial / volume, or `stress_key: null` to "
                    "read none",
                )
            if alike or options.stress_key != "stress":  # else the file has no stresses
                raise self._missing("stress_key", options.stress_key)
        if self._without_cell:
            self._quarantine.remark(self._path.name, STRESS_WITHOUT_CELL, "virial", count=self._without_cell)
        if self._unread:
            self._quarantine.remark(
                self._path.name, UNREAD_STRESS, "virial_key or stress_key would read it", count=self._unread
            )

    def _energy(self, value: Any, n_atoms: int) -> float | None:
        if value is None:
            return None
        flat = as_floats(value, MALFORMED_ENERGY, "energy").reshape(-1)
        if flat.size != 1:
            raise UnusableError(MALFORMED_ENERGY, f"{flat.size} numbers instead of 1")
        per_atom = n_atoms if self._options.energy_is_per_atom else 1
        return float(flat[0]) * self._units.energy_factor * per_atom

    def _stress(
        self, found: Mapping[str, Any], cell: NDArray[np.floating], alike: set[str]
    ) -> NDArray[np.float64] | None:
        """(3, 3) eV/Å³ from the stress, or from the virial if there is no stress; if both are read, they must agree."""
        options, units = self._options, self._units
        stress = virial = None
        if options.stress_key is not None and found.get(options.stress_key) is not None:
            stress = full_stress(found[options.stress_key], "stress") * (units.stress_factor * options.stress_sign)
        if options.virial_key is not None and found.get(options.virial_key) is not None:
            virial = -full_stress(found[options.virial_key], "virial") * units.energy_factor
            volume = abs(np.linalg.det(cell))
            self._without_cell += volume == 0
            virial = virial / volume if volume else None
        if stress is None and virial is None:
            keys = {options.stress_key, options.virial_key}
            self._unread += keys != {None} and bool(alike - keys)
            return None
        if stress is None or virial is None:
            return stress if virial is None else virial
        if np.abs(stress - virial).max() > VIRIAL_TOLERANCE * max(np.abs(stress).max(), np.abs(virial).max()) + 1e-6:
            raise UnusableError(
                CONTRADICTING_STRESS,
                f"xx of the stress {stress[0, 0]:.6g} eV/Å³, of -virial / volume {virial[0, 0]:.6g} eV/Å³",
            )
        return stress

    def _group(self, found: Mapping[str, Any], numbers: NDArray[np.integer]) -> str:
        key = self._options.group_key
        if key is None:
            return composition(numbers)
        if found.get(key) is None and key == FILE:
            return f"{self._path.parent.name}/{self._path.name}"
        if found.get(key) is None:
            raise UnusableError(NO_GROUP, f"no '{key}' (`group_key`)")
        return str(found[key])

    def _missing(self, key: str, value: str) -> RamifyError:
        has = ", ".join(sorted(self._names)) or "no keys"
        optional = key in ("forces_key", "stress_key", "virial_key", "charge_key", "spin_key")
        return RamifyError(
            f"{self._path} has no '{value}' (`{key}`){nearest(value, self._names)}; it has {has}",
            fix=f"set `{key}` to the name in the file" + (", or to null to read none" if optional else ""),
        )


def full_stress(value: Any, name: str) -> NDArray[np.float64]:
    """Converts 9 numbers, or 6 in Voigt order (xx yy zz yz xz xy), to a (3, 3) array.

    Raises:
        UnusableError: another shape, or not numbers.
    """
    array = as_floats(value, MALFORMED_STRESS, name)
    if array.size == 9:
        return array.reshape(3, 3)
    if array.size == 6:
        return np.asarray(voigt_6_to_full_3x3_stress(array.reshape(-1)))
    raise UnusableError(MALFORMED_STRESS, f"{name} of shape {array.shape} instead of 9 numbers, or 6 in Voigt order")


def _number(value: Any) -> float:
    """Converts one number; anything else becomes NaN, which records reject."""
    flat = np.asarray(value).reshape(-1)
    return float(flat[0]) if flat.size == 1 and np.issubdtype(flat.dtype, np.number) else np.nan


def _is_stress(name: str, value: Any) -> bool:
    """Returns whether a value may be the stress or virial of a structure (rather than of its atoms)."""
    return ("stress" in name.lower() or "virial" in name.lower()) and np.size(value) in (6, 9)
