"""Rows of a numpy archive: read from its stream block by block, and turned into structures without their padding."""

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
    """An array inside the archive, read row by row from its stream.

    Attributes:
        shape: the shape of the whole array.
        kind: numpy's letter for the kind of its values.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        header = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
        self.shape, column_major, self._dtype = header(stream)
        if self._dtype.hasobject or (column_major and len(self.shape) > 1):
            raise ValueError("an array of objects or in column-major order; save it as plain C-ordered numbers")
        self.kind = self._dtype.kind
        self._stream = stream

    def read(self, rows: int) -> NDArray[Any]:
        """The next `rows` rows."""
        shape = (rows, *self.shape[1:])
        size = int(np.prod(shape)) * self._dtype.itemsize
        data = self._stream.read(size)
        if len(data) != size:
            raise EOFError("an array is cut short")
        return np.frombuffer(data, self._dtype).reshape(shape)

    def read_all(self) -> NDArray[Any]:
        """Every row."""
        return self.read(self.shape[0])


class Block:
    """Some rows of all arrays.

    Args:
        path: the file.
        values: arrays by role, one row per structure.
        start: the first row.
        units: of the numbers.
        per_atom: whether energies are.
        lattice: whether lattice vectors are `rows` or `columns`; None where nobody says.
    """

    def __init__(
        self,
        path: Path,
        values: dict[str, NDArray[Any]],
        start: int,
        units: Units,
        *,
        per_atom: bool,
        lattice: str | None,
    ) -> None:
        self._path, self._values, self._start = path, values, start
        self._units, self._per_atom, self._lattice = units, per_atom, lattice

    def structures(self, quarantine: Quarantine) -> Structures:
        """The rows that can be used, without their padding; the others go to the quarantine."""
        numbers = _whole(self._values["numbers"])
        energy, problems = _energies(self._values["energy"])
        for row, found in enumerate(numbers):
            try:
                check_numbers(found[found != 0])
            except UnusableError as error:
                problems.setdefault(row, error)
        for row, problem in sorted(problems.items()):
            quarantine.add(f"{self._path.name}[{self._start + row}]", problem.reason, problem.detail)
        rows = np.delete(np.arange(len(numbers)), list(problems))
        return self._labelled(self._build(rows, numbers[rows], energy[rows]), quarantine)

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
            pbc=None if cell is None else np.ones((len(rows), 3), np.bool_),
            energy=energy,
            forces=forces,
            group=group,
            row=self._start + rows,
            group_names=names,
            origin_names=(self._path.name,),
        )

    def _cell(self, rows: NDArray[np.int64]) -> NDArray[np.float64] | None:
        if "cell" not in self._values:
            return None
        cell = self._values["cell"][rows].astype(np.float64) * self._units.length_factor
        turned = cell.transpose(0, 2, 1)
        if self._lattice is None and not np.array_equal(cell, turned):
            raise RamifyError(
                f"{self._path}: the cell {cell[0].tolist()} is not symmetric: it matters whether lattice vectors "
                "are its rows (as sGDML's converters write them) or its columns (as its documentation says)",
                fix="set `lattice: rows` or `lattice: columns`",
            )
        return turned if self._lattice == "columns" else cell

    def _labelled(self, found: Structures, quarantine: Quarantine) -> Structures:
        """Without the rows that have a NaN in a label."""
        unlabelled = np.isnan(found.energy)
        if "forces" in self._values:
            unlabelled[found.structure_of_atom[np.isnan(found.forces).any(axis=1)]] = True
        for index in np.flatnonzero(unlabelled).tolist():
            quarantine.add(found.name(index), NOT_COMPUTED)
        return found.take(np.flatnonzero(~unlabelled)) if unlabelled.any() else found


def _whole(numbers: NDArray[Any]) -> NDArray[np.int64]:
    if numbers.dtype.kind == "f" and not np.array_equal(numbers, np.rint(numbers)):
        raise ValueError("atomic numbers that are not whole")
    return numbers.astype(np.int64)


def _energies(values: NDArray[Any]) -> tuple[NDArray[np.float64], dict[int, UnusableError]]:
    """(R,) energies; and which rows hold no number, for archives that keep energies as text."""
    flat, problems = values.reshape(-1), {}
    if flat.dtype.kind in "iuf":
        return flat.astype(np.float64), {}
    energy = np.full(len(flat), np.nan)
    for row, text in enumerate(flat.astype(str).tolist()):
        try:
            energy[row] = float(text)
        except ValueError:
            problems[row] = UnusableError(MALFORMED_ENERGY, f"energy {text[:60]!r} is no number")
    return energy, problems
