"""Columns of a store: their types, and writing them as files in pieces."""

import hashlib
import io
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ramify.labels import further
from ramify.store.blocks import BlockSums, memory_of
from ramify.store.manifest import Column
from ramify.structures import STATES

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class ColumnType:
    """Type of a column: little-endian type, shape of one row, and whether a row is an atom or a structure."""

    dtype: str
    row: tuple[int, ...]
    per_atom: bool = False

    def shape(self, structures: int, atoms: int) -> tuple[int, ...]:
        """Shape of the whole column."""
        return (atoms if self.per_atom else structures, *self.row)


COLUMNS: dict[str, ColumnType] = {
    "n_atoms": ColumnType("<i4", ()),
    "numbers": ColumnType("|u1", (), per_atom=True),
    "positions": ColumnType("<f4", (3,), per_atom=True),
    "forces": ColumnType("<f4", (3,), per_atom=True),
    "cell": ColumnType("<f4", (3, 3)),
    "pbc": ColumnType("|b1", (3,)),
    "energy": ColumnType("<f8", ()),
    "stress": ColumnType("<f4", (3, 3)),
    "group": ColumnType("<i4", ()),
    "origin": ColumnType("<i4", ()),
    "row": ColumnType("<i8", ()),
}
"""Units as in `Structures`; energy is the total energy, references are subtracted before a cast to float32."""


STATE_COLUMNS: dict[str, ColumnType] = {name: ColumnType("<f4", ()) for name in STATES}
"""Charge (e) and multiplicity, NaN where they are not stated; a store has these columns only where any of its
structures states them."""

LABEL_COLUMN = ColumnType("<f8", ())
"""Type of further labels (`ramify.labels.register`); a store has a column for each label of any of its structures."""


def column_type(name: str) -> ColumnType:
    """Type of a column, one of `COLUMNS` and `STATE_COLUMNS` or a further label."""
    return COLUMNS.get(name) or STATE_COLUMNS.get(name, LABEL_COLUMN)


def possible_columns() -> tuple[str, ...]:
    """Names of all possible columns of a store, charge, spin and further labels included."""
    return (*COLUMNS, *STATE_COLUMNS, *further())


class RawColumns:
    """Columns of unknown length, appended in pieces and then memory-mapped; for staging.

    Args:
        folder: folder for the files `<column>.raw`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, IO[bytes]] = {name: (folder / f"{name}.raw").open("wb") for name in possible_columns()}

    def append(self, pieces: Mapping[str, Array]) -> None:
        """Adds one piece to every column; values are cast to the column's type."""
        for name, file in self._files.items():
            write(file, np.ascontiguousarray(pieces[name], column_type(name).dtype))

    def close(self) -> None:
        """Closes the files for writing."""
        for file in self._files.values():
            file.close()

    def map(self, name: str) -> Array:
        """Maps one column; its pages are released with the result. Call `close` first."""
        kind = column_type(name)
        with (self._folder / f"{name}.raw").open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:  # cannot be mapped
                return np.empty((0, *kind.row), kind.dtype)
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # np.memmap takes ten times as long
        return np.frombuffer(memory, kind.dtype).reshape(-1, *kind.row)


def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Header of a `.npy` file."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    return header.getvalue()


class NpyFile:
    """One `.npy` file of known shape, written in pieces with checksums.

    Attributes:
        blocks: checksums of its blocks, set by `finish`.
    """

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...]) -> None:
        self._dtype, self._shape = dtype, shape
        self._missing = int(np.prod(shape, dtype=np.int64))
        self._hash, self._sums = hashlib.sha256(), BlockSums()
        self.blocks: list[int] = []
        self._file = path.open("wb")
        self._put(np.frombuffer(npy_header(dtype, shape), np.uint8))

    def append(self, piece: Array) -> None:
        """Adds rows; values are cast to the file's type."""
        array = np.ascontiguousarray(piece, self._dtype)
        self._missing -= array.size
        self._put(array)
        self._sums.add(array)

    def finish(self) -> Column:
        """Flushes the file to disk and returns its description."""
        assert self._missing == 0, "the pieces do not add up to the shape stated in the header"
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self.blocks = self._sums.finish()
        return Column(dtype=self._dtype, shape=self._shape, sha256=self._hash.hexdigest())

    def close(self) -> None:
        """Closes an unfinished file; has no effect after `finish`."""
        self._file.close()

    def _put(self, array: Array) -> None:
        write(self._file, array)
        self._hash.update(memory_of(array))


def write(file: IO[bytes], array: Array) -> None:
    """Appends the bytes of a contiguous array (`ndarray.tofile` does not report the cause of a failure)."""
    file.write(memory_of(array))
