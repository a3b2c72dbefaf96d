"""`Structures`: any number of atomistic structures as flat columns, the common data type of the package.

Sources yield it, stores hold it on disk, batches are built from it. S structures have N atoms in total; the atoms of
one structure are contiguous. An absent label is NaN, never zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ramify.labels import BUILT_IN, LABELS

if TYPE_CHECKING:
    from ase import Atoms


class Split(IntEnum):
    """Split of a structure; NONE until the source or `prepare` assigns one."""

    NONE = 0
    TRAIN = 1
    VAL = 2
    TEST = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Structures:
    """S structures with N atoms in total, as flat columns.

    Attributes:
        n_atoms: (S,) int64, atoms of each structure; sums to N.
        numbers: (N,) uint8, atomic numbers.
        positions: (N, 3) float, Å.
        cell: (S, 3, 3) float, Å; rows are lattice vectors, zero where there is no cell.
        pbc: (S, 3) bool, periodicity along each lattice vector.
        energy: (S,) float64, total energy in eV; NaN where there is no label.
        forces: (N, 3) float, eV/Å, forces (-dE/dx); NaN where there is no label.
        stress: (S, 3, 3) float, eV/Å³, tension positive (dE/dε / V); NaN where there is no label.
        charge: (S,) float64, total charge in e, a whole number; NaN where it is not stated, which does not mean 0.
        spin: (S,) float64, multiplicity 2S+1 (1: singlet), a whole number; NaN where it is not stated.
        split: (S,) uint8, a `Split`.
        group: (S,) int64, index into `group_names`: structures of one group are assigned to the same split.
        origin: (S,) int64, index into `origin_names`: the file and the path inside it.
        row: (S,) int64, position inside the origin.
        group_names: names of the groups.
        origin_names: names of the origins.
        labels: further labels by name (`ramify.labels.register`), (S,) float64, each in its unit; NaN where there is
            no label.
    """

    n_atoms: NDArray[np.int64]
    numbers: NDArray[np.uint8]
    positions: NDArray[np.floating]
    cell: NDArray[np.floating]
    pbc: NDArray[np.bool_]
    energy: NDArray[np.float64]
    forces: NDArray[np.floating]
    stress: NDArray[np.floating]
    charge: NDArray[np.float64]
    spin: NDArray[np.float64]
    split: NDArray[np.uint8]
    group: NDArray[np.int64]
    origin: NDArray[np.int64]
    row: NDArray[np.int64]
    group_names: tuple[str, ...]
    origin_names: tuple[str, ...]
    labels: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.n_atoms)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """(S + 1,) index of the first atom of each structure, and N at the end."""
        return np.concatenate([[0], np.cumsum(self.n_atoms, dtype=np.int64)])

    @property
    def structure_of_atom(self) -> NDArray[np.int64]:
        """(N,) index of the structure of each atom."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.n_atoms)

    def label(self, name: str) -> NDArray[np.floating]:
        """Column of a label of `ramify.labels`; all NaN if no structure has it."""
        if name in BUILT_IN:
            column: NDArray[np.floating] = getattr(self, name)
            return column
        return self.labels.get(name, np.full(len(self), np.nan))

    def compared(self, name: str) -> NDArray[np.float64]:
        """(S,) values of a further label in the unit of its errors: per atom if the label is extensive."""
        values = self.label(name).astype(np.float64)
        return values / self.n_atoms if LABELS[name].extensive else values

    def name(self, index: int) -> str:
        """Origin and row of structure `index`, e.g. `ani1x.h5/C2H6[17]`."""
        return f"{self.origin_names[self.origin[index]]}[{self.row[index]}]"

    @classmethod
    def make(
        cls,
        *,
        n_atoms: Any,
        numbers: Any,
        positions: Any,
        cell: Any = None,
        pbc: Any = None,
        energy: Any = None,
        forces: Any = None,
        stress: Any = None,
        charge: Any = None,
        spin: Any = None,
        split: Any = None,
        group: Any = None,
        origin: Any = None,
        row: Any = None,
        group_names: Sequence[str] = ("",),
        origin_names: Sequence[str] = ("",),
        labels: Mapping[str, Any] | None = None,
    ) -> Structures:
        """Builds structures from the given columns; defaults are no cell, label, charge or spin, group 0, row i.

        Raises:
            ValueError: inconsistent lengths of columns, an atomic number outside the range of its type, or an index
                outside its table of names.
        """
        n_atoms = np.asarray(n_atoms, np.int64)
        wide = np.asarray(numbers)
        if wide.size and wide.dtype != np.uint8 and not 0 <= wide.min() <= wide.max() <= 255:
            raise ValueError(f"atomic numbers {wide.min()} to {wide.max()}")
        S, N = len(n_atoms), int(n_atoms.sum())

        def column(value: Any, shape: tuple[int, ...], dtype: Any, default: Any) -> NDArray[Any]:
            if value is None:
                return np.full(shape, default, dtype)
            array = np.ascontiguousarray(value, dtype)
            if array.shape != shape:
                raise ValueError(f"a column has shape {array.shape}, expected {shape} for {S} structures, {N} atoms")
            return array

        made = cls(
            n_atoms=n_atoms,
            numbers=column(numbers, (N,), np.uint8, 0),
            positions=column(positions, (N, 3), np.float64, 0.0),
            cell=column(cell, (S, 3, 3), np.float64, 0.0),
            pbc=column(pbc, (S, 3), np.bool_, False),
            energy=column(energy, (S,), np.float64, np.nan),
            forces=column(forces, (N, 3), np.float64, np.nan),
            stress=column(stress, (S, 3, 3), np.float64, np.nan),
            charge=column(charge, (S,), np.float64, np.nan),
            spin=column(spin, (S,), np.float64, np.nan),
            split=column(split, (S,), np.uint8, Split.NONE),
            group=column(group, (S,), np.int64, 0),
            origin=column(origin, (S,), np.int64, 0),
            row=column(np.arange(S) if row is None else row, (S,), np.int64, 0),
            group_names=tuple(group_names),
            origin_names=tuple(origin_names),
            labels={name: column(values, (S,), np.float64, np.nan) for name, values in (labels or {}).items()},
        )
        for index, names in ((made.group, made.group_names), (made.origin, made.origin_names)):
            if S and not (index.min() >= 0 and index.max() < len(names)):
                raise ValueError(f"an index is outside its table of {len(names)} names")
        return made

    def take(self, indices: NDArray[np.integer] | Sequence[int]) -> Structures:
        """Selects the structures at `indices`, in that order (repeats allowed); names are shared, not copied."""
        index = np.asarray(indices, np.int64)
        counts = self.n_atoms[index]
        atoms = atom_rows(self.offsets[index], counts)
        changed: dict[str, Any] = {f: getattr(self, f)[index] for f in STRUCTURE_COLUMNS}
        changed |= {f: getattr(self, f)[atoms] for f in ATOM_COLUMNS}
        changed["labels"] = {name: column[index] for name, column in self.labels.items()}
        return replace(self, **changed)

    def span(self, start: int, stop: int) -> Structures:
        """Selects structures `start` to `stop`, as views."""
        a, b = int(self.n_atoms[:start].sum()), int(self.n_atoms[:stop].sum())
        changed: dict[str, Any] = {f: getattr(self, f)[start:stop] for f in STRUCTURE_COLUMNS}
        changed |= {f: getattr(self, f)[a:b] for f in ATOM_COLUMNS}
        changed["labels"] = {name: column[start:stop] for name, column in self.labels.items()}
        return replace(self, **changed)

    @classmethod
    def concatenate(cls, parts: Iterable[Structures]) -> Structures:
        """Joins all structures of `parts` in order; the tables of names are merged."""
        parts = list(parts)
        if not parts:
            return cls.make(n_atoms=[], numbers=[], positions=np.zeros((0, 3)))
        columns: dict[str, Any] = {
            f: np.concatenate([getattr(p, f) for p in parts])
            for f in (*STRUCTURE_COLUMNS, *ATOM_COLUMNS)
            if f not in ("group", "origin")
        }
        for index, table in (("group", "group_names"), ("origin", "origin_names")):
            columns[index], columns[table] = _merge_names([(getattr(p, index), getattr(p, table)) for p in parts])
        named = dict.fromkeys(name for part in parts for name in part.labels)
        further = {name: np.concatenate([part.label(name) for part in parts]) for name in named}
        return cls(**columns, labels=further)

    def to_ase(self, index: int) -> Atoms:
        """Converts structure `index` to ASE atoms; labels are `REF_energy` in `.info`, `REF_forces` in `.arrays`, and
        `charge` and `spin` are in `.info` where they are stated."""
        from ase import Atoms

        a, b = self.offsets[index : index + 2]
        atoms = Atoms(
            numbers=self.numbers[a:b], positions=self.positions[a:b], cell=self.cell[index], pbc=self.pbc[index]
        )
        atoms.info["REF_energy"] = float(self.energy[index])
        atoms.arrays["REF_forces"] = np.array(self.forces[a:b])
        for name in STATES:
            if not np.isnan(value := getattr(self, name)[index]):
                atoms.info[name] = int(value)
        return atoms

    @classmethod
    def from_ase(cls, images: Sequence[Atoms]) -> Structures:
        """Converts ASE atoms without labels; a cell of zero volume without a periodic axis is kept unchanged. Charge
        and spin (multiplicity) are those of `atoms.info`, NaN where they are absent or not a number."""
        return cls.make(
            n_atoms=[len(a) for a in images],
            numbers=np.concatenate([a.numbers for a in images]) if images else [],
            positions=np.concatenate([a.positions for a in images]) if images else np.zeros((0, 3)),
            cell=np.array([a.cell.array for a in images]).reshape(-1, 3, 3),
            pbc=np.array([a.pbc for a in images]).reshape(-1, 3),
            charge=[_number(a.info.get("charge")) for a in images],
            spin=[_number(a.info.get("spin")) for a in images],
        )


def _number(value: Any) -> float:
    """A number as float; NaN for anything else."""
    array = np.asarray(value)
    return float(array.reshape(-1)[0]) if array.size == 1 and array.dtype.kind in "iuf" else np.nan


def state_text(charge: float | None, spin: float | None) -> str:
    """Text of a charge in e and a multiplicity; None and NaN are not stated."""
    unknown = [value is None or np.isnan(value) for value in (charge, spin)]
    charge_text = "charge not stated" if unknown[0] else f"charge {charge:+.0f}" if charge else "charge 0"
    return f"{charge_text}, {'spin not stated' if unknown[1] else f'multiplicity {spin:.0f}'}"


STATES = ("charge", "spin")
"""Columns of the electronic state; NaN where a structure does not state them."""
ATOM_COLUMNS = ("numbers", "positions", "forces")
STRUCTURE_COLUMNS = ("n_atoms", "cell", "pbc", "energy", "stress", *STATES, "split", "group", "origin", "row")
assert {f.name for f in fields(Structures)} == {
    *ATOM_COLUMNS,
    *STRUCTURE_COLUMNS,
    "group_names",
    "origin_names",
    "labels",
}


def atom_rows(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Concatenated atom rows of structures that begin at `starts` with `counts` atoms each."""
    total = int(counts.sum())
    first = np.cumsum(counts) - counts  # where each structure begins in the result
    return np.repeat(starts - first, counts) + np.arange(total, dtype=np.int64)


def _merge_names(
    parts: Sequence[tuple[NDArray[np.int64], tuple[str, ...]]],
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Converts indices into several tables of names to indices into one table without repeats."""
    position: dict[str, int] = {}
    merged = []
    seen: tuple[str, ...] | None = None
    for index, names in parts:
        if names is not seen:  # chunks of one source usually share the table: translate it once
            translate = np.array([position.setdefault(n, len(position)) for n in names], np.int64)
            seen = names
        merged.append(translate[index] if len(index) else index)
    return np.concatenate(merged), tuple(position)
