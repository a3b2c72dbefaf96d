"""Rows of a NumPy archive, read from its stream block by block and converted to structures without padding."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ramify.errors import RamifyError
from ramify.sources.chunks import (
    MALFORMED_ENERGY,
    NOT_COMPUTED,
    UnusableError,
    check_numbers,
    composition,
    index_names,
)
from ramify.sources.quarantine import Quarantine
from ramify.sources.units import Units
from ramify.structures import Structures


class Rows:
    """An array in the archive, read row by row from its stream.

    Attributes:
        shape: shape of the whole array.
        kind: NumPy's code of the kind of its values.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        header = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
        self.shape, column_major, self._dtype = header(stream)
        if self._dtype.hasobject or (column_major and len(self.shape) > 1):
            raise ValueError("an array of objects or in column-major order; save it as numbers in C order")
        self.kind = self._dtype.kind
        self._stream = stream

    def read(self, rows: int) -> NDArray[Any]:
        """Reads the next `rows` rows."""
        shape = (rows, *self.shape[1:])
        size = int(np.prod(shape)) * self._dtype.itemsize
        data = self._stream.read(size)
        if len(data) != size:
            raise EOFError("an array is truncated")
        return np.frombuffer(data, self._dtype).reshape(shape)

    def read_all(self) -> NDArray[Any]:
        """Reads all rows."""
        return self.read(self.shape[0] if self.shape else 1)


class Block:
    """A block of rows of all arrays.

    Args:
        path: the file.
        values: arrays by role, one row per structure.
        start: index of the first row.
        units: units of the file.
        options: whether energies are per atom, and the conventions of the lattice and of the spin.
    """

    def __init__(
        self,
        path: Path,
        values: dict[str, NDArray[Any]],
        start: int,
        units: Units,
        options: Any,
    ) -> None:
        self._path, self._values, self._start = path, values, start
        self._units, self._options = units, options
        self._per_atom, self._lattice = options.energy_is_per_atom, options.lattice

    def structures(self, quarantine: Quarantine) -> Structures:
        """Converts the usable rows without their padding; the others are added to the quarantine."""
        numbers = _whole(self._values["numbers"])
        energy, problems = _energies(self._values["energy"])
        for row, found in enumerate(numbers):
            try:
                check_numbers(found[found != 0])
            except UnusableError as error:
                problems.setdefault(row, error)
        charge, spin = (
            self._states(role, convert, len(numbers), problems)
            for role, convert in (("charge", self._options.charge_of), ("spin", self._options.spin_of))
        )
        for row, problem in sorted(problems.items()):
            quarantine.add(f"{self._path.name}[{self._start + row}]", problem.reason, problem.detail)
        rows = np.delete(np.arange(len(numbers)), list(problems))
        built = self._build(rows, numbers[rows], energy[rows])
        return self._labelled(replace(built, charge=charge[rows], spin=spin[rows]), quarantine)

    def _states(
        self, role: str, convert: Callable[[Any], float | None], rows: int, problems: dict[int, UnusableError]
    ) -> NDArray[np.float64]:
        """(R,) charges or multiplicities, NaN without such an array; rows that cannot be converted are problems."""
        found = np.full(rows, np.nan)
        for row, value in enumerate(self._values.get(role, ())):
            try:
                found[row] = convert(value)
            except UnusableError as error:
                problems.setdefault(row, error)
        return found

    def _build(self, rows: NDArray[np.int64], numbers: NDArray[Any], energy: NDArray[np.float64]) -> Structures:
        present = numbers != 0
        n_atoms = present.sum(axis=1)
        energy = energy * self._units.energy_factor * (n_atoms if self._per_atom else 1)
        forces = self._values["forces"][rows][present] * self._units.forces_factor if "forces" in self._values else None
        parts = np.split(numbers[present], np.cumsum(n_atoms)[:-1]) if len(rows) else []
        given = self._values["group"][rows].astype(str) if "group" in self._values else map(composition, parts)
        group, names = index_names(given)
        cell = self._cell(rows)
        return Structures.make(
            n_atoms=n_atoms,
            numbers=numbers[present],
            positions=self._values["positions"][rows][present] * self._units.length_factor,
            cell=cell,
            pbc=None if cell is None else self._pbc(rows),
            energy=energy,
            forces=forces,
            group=group,
            row=self._start + rows,
            group_names=names,
            origin_names=(self._path.name,),
        )

    def _pbc(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        if "pbc" not in self._values:
            return np.ones((len(rows), 3), np.bool_)
        flags = self._values["pbc"][rows]
        if flags.dtype.kind not in "biu" or not np.isin(flags, (0, 1)).all():
            raise ValueError("the array pbc has values other than true and false")
        return flags.astype(np.bool_)

    def _cell(self, rows: NDArray[np.int64]) -> NDArray[np.float64] | None:
        if "cell" not in self._values:
            return None
        cell = self._values["cell"][rows].astype(np.float64) * self._units.length_factor
        transposed = cell.transpose(0, 2, 1)
        if self._lattice is None and not np.array_equal(cell, transposed):
            raise RamifyError(
                f"{self._path}: the cell {cell[0].tolist()} is not symmetric, and its lattice vectors may be its rows "
                "(as written by the converters of sGDML) or its columns (as in the documentation of sGDML)",
                fix="set `lattice: rows` or `lattice: columns`",
            )
        return transposed if self._lattice == "columns" else cell

    def _labelled(self, found: Structures, quarantine: Quarantine) -> Structures:
        """Removes the rows with a NaN in a label."""
        unlabelled = np.isnan(found.energy)
        if "forces" in self._values:
            unlabelled[found.structure_of_atom[np.isnan(found.forces).any(axis=1)]] = True
        for index in np.flatnonzero(unlabelled).tolist():
            quarantine.add(found.name(index), NOT_COMPUTED)
        return found.take(np.flatnonzero(~unlabelled)) if unlabelled.any() else found


def _whole(numbers: NDArray[Any]) -> NDArray[np.int64]:
    if numbers.dtype.kind == "f" and not np.array_equal(numbers, np.rint(numbers)):
        raise ValueError("atomic numbers that are not integers")
    return numbers.astype(np.int64)


def _energies(values: NDArray[Any]) -> tuple[NDArray[np.float64], dict[int, UnusableError]]:
    """(R,) energies, and the rows that are not numbers, for archives with energies as text."""
    flat, problems = values.reshape(-1), {}
    if flat.dtype.kind in "iuf":
        return flat.astype(np.float64), {}
    energy = np.full(len(flat), np.nan)
    for row, text in enumerate(flat.astype(str).tolist()):
        try:
            energy[row] = float(text)
        except ValueError:
            problems[row] = UnusableError(MALFORMED_ENERGY, f"energy {text[:60]!r} is not a number")
    return energy, problems
