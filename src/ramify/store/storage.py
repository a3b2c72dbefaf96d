"""Storage of the columns of an open store: arrays of the process or its node, verified on first read."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ramify.store.blocks import block_count, block_rows, touched_blocks
from ramify.store.columns import COLUMNS, column_type
from ramify.store.files import StoreFiles, check_block
from ramify.store.row_index import RowIndex
from ramify.structures import atom_rows

Columns = dict[str, NDArray[Any]]
Rows = NDArray[np.int64]

TAKEN = tuple(name for name in COLUMNS if name != "n_atoms")
"""Columns that every store has, except the numbers of atoms."""


class ColumnStorage(Protocol):
    """Storage from which a store reads structures."""

    def take(self, rows: Rows, n_atoms: Rows, columns: Sequence[str] = TAKEN) -> Columns:
        """Copies columns of the structures at `rows` (T,), in that order.

        Args:
            rows: indices of structures.
            n_atoms: number of atoms of each.
            columns: names of columns; by default all but `n_atoms`.
        """

    def load(self) -> None:
        """Loads data that must be read as a whole, unless already loaded."""

    def close(self) -> None:
        """Releases the memory."""


class ArrayStorage:
    """Flat arrays: memory maps, or memory that the processes of a node share.

    Args:
        columns: columns of the whole store.
        check: called with rows, their first atoms and their numbers of atoms before they are read.
        release: called when the store is closed.
    """

    def __init__(
        self,
        columns: Mapping[str, NDArray[Any]],
        check: Callable[[Rows, Rows, Rows], None] = lambda rows, starts, n_atoms: None,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self._columns, self._check, self._release = dict(columns), check, release
        self._index = RowIndex(self._columns["n_atoms"])

    def take(self, rows: Rows, n_atoms: Rows, columns: Sequence[str] = TAKEN) -> Columns:
        """See `ColumnStorage`."""
        starts = self._index.starts(rows)
        self._check(rows, starts, n_atoms)
        atoms = atom_rows(starts, n_atoms)
        return {
            name: self._columns[name].take(atoms if column_type(name).per_atom else rows, axis=0) for name in columns
        }

    def load(self) -> None:
        """See `ColumnStorage`: there is nothing to do."""

    def close(self) -> None:
        """See `ColumnStorage`."""
        self._columns = {}
        self._release()


class LazyStorage:
    """Storage that is loaded into memory on first use, by any thread.

    Args:
        read: loads the storage.
        release: called when the store is closed.
    """

    def __init__(self, read: Callable[[], ColumnStorage], release: Callable[[], None]) -> None:
        self._read, self._release = read, release
        self._storage: ColumnStorage | None = None
        self._reading = threading.Lock()

    def take(self, rows: Rows, n_atoms: Rows, columns: Sequence[str] = TAKEN) -> Columns:
        """See `ColumnStorage`."""
        return self._there().take(rows, n_atoms, columns)

    def load(self) -> None:
        """See `ColumnStorage`."""
        self._there()

    def close(self) -> None:
        """See `ColumnStorage`."""
        if self._storage is not None:
            self._storage.close()
        self._release()

    def _there(self) -> ColumnStorage:
        with self._reading:
            if self._storage is None:
                self._storage = self._read()
            return self._storage


class ChecksumOnRead:
    """Verifies the checksum of a block when the first of its rows is read.

    Verifying a memory-mapped store when it is opened would read all of it. With this class, damaged data are never
    used, and every block is verified once in each process.

    Args:
        files: files of the store.
        columns: mapped columns of the whole store.
    """

    def __init__(self, files: StoreFiles, columns: Mapping[str, NDArray[Any]]) -> None:
        self._files, self._columns = files, dict(columns)
        self._of_atoms = _Waiting(len(columns["numbers"]))
        self._of_structures = _Waiting(len(columns["n_atoms"]))

    def whole(self, name: str) -> None:
        """Verifies a whole column, which is not checked again.

        Raises:
            RamifyError: a checksum does not match.
        """
        column = self._columns.pop(name)
        for block in range(block_count(len(column))):
            self._compare(name, column, block)

    def __call__(self, rows: Rows, starts: Rows, n_atoms: Rows) -> None:
        """Verifies the unverified blocks that contain these structures.

        Raises:
            RamifyError: a checksum does not match.
        """
        if not len(rows):
            return
        for waiting, first, counts, per_atom in (
            (self._of_structures, rows, np.ones_like(rows), False),
            (self._of_atoms, starts, n_atoms, True),
        ):
            for block in waiting.among(first, counts):
                for name, column in self._columns.items():
                    if column_type(name).per_atom == per_atom:
                        self._compare(name, column, block)
                waiting.done(block)

    def _compare(self, name: str, column: NDArray[Any], block: int) -> None:
        check_block(self._files, name, block, column[block_rows(block, len(column))])


class _Waiting:
    """Tracks the unverified blocks of a column of `rows` rows."""

    def __init__(self, rows: int) -> None:
        self._waits = np.ones(block_count(rows), np.bool_)
        self._left = len(self._waits)

    def among(self, first: Rows, counts: Rows) -> list[int]:
        """Unverified blocks that contain any of these rows."""
        if not self._left:
            return []
        touched = touched_blocks(first, counts)
        return touched[self._waits[touched]].tolist()

    def done(self, block: int) -> None:
        """Marks a block as verified; two threads may have verified the same block."""
        self._waits[block] = False
        self._left = int(np.count_nonzero(self._waits))
