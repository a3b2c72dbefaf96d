"""Where the columns of an open store are: arrays of this process or of its node, checked when they are first read."""

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
"""Columns that every store has, apart from the numbers of atoms."""


class ColumnStorage(Protocol):
    """What a store takes structures from."""

    def take(self, rows: Rows, n_atoms: Rows, columns: Sequence[str] = TAKEN) -> Columns:
        """Columns of the structures at `rows` (T,), in that order, in memory of their own.

        Args:
            rows: which structures.
            n_atoms: atoms of each.
            columns: which; all but `n_atoms` if not given.
        """

    def load(self) -> None:
        """Reads what has to be read as a whole, if that is not done yet."""

    def close(self) -> None:
        """Gives memory back; nothing can be taken any more."""


class ArrayStorage:
    """Flat arrays: memory maps, or memory that the processes of a node share.

    Args:
        columns: of the whole store.
        check: called with rows, their first atoms and their numbers of atoms before they are taken.
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
    """A home that is read into memory when it is first needed, by whichever thread needs it.

    Args:
        read: gives the home.
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
    """Compares the checksum of a block of rows when the first of its rows is read.

    A memory map is open before any of it has been read; checking everything first would read everything. This way
    wrong bytes never become numbers, and every byte is checked once in each process.

    Args:
        files: of the store.
        columns: of the whole store, mapped.
    """

    def __init__(self, files: StoreFiles, columns: Mapping[str, NDArray[Any]]) -> None:
        self._files, self._columns = files, dict(columns)
        self._of_atoms = _Waiting(len(columns["numbers"]))
        self._of_structures = _Waiting(len(columns["n_atoms"]))

    def whole(self, name: str) -> None:
        """Checks one column at once, which is not looked at again.

        Raises:
            RamifyError: a block is not what was written.
        """
        column = self._columns.pop(name)
        for block in range(block_count(len(column))):
            self._compare(name, column, block)

    def __call__(self, rows: Rows, starts: Rows, n_atoms: Rows) -> None:
        """Checks what these structures touch for the first time.

        Raises:
            RamifyError: a block is not what was written.
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
    """Which blocks of a column of `rows` rows are not checked yet."""

    def __init__(self, rows: int) -> None:
        self._waits = np.ones(block_count(rows), np.bool_)
        self._left = len(self._waits)

    def among(self, first: Rows, counts: Rows) -> list[int]:
        """The blocks that wait and hold any of these rows."""
        if not self._left:
            return []
        touched = touched_blocks(first, counts)
        return touched[self._waits[touched]].tolist()

    def done(self, block: int) -> None:
        """Waits no longer; two threads may have checked the same block."""
        self._waits[block] = False
        self._left = int(np.count_nonzero(self._waits))
