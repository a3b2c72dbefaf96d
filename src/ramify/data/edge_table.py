"""The edges of every structure of a split, found once and kept while they fit into memory."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ramify.data.neighbors import Edges, find_edges
from ramify.data.store import Store
from ramify.structures import atom_rows

_STRUCTURES_AT_ONCE = 2000

BYTES_PER_EDGE = 4 + 1 * 3
"""Sender as int32 within its structure, three lattice steps as int8; receivers follow from counts."""


class EdgeTable:
    """Edges of the structures `rows` of a store, as flat columns.

    `take` returns exactly what `find_edges` would return for the same structures.
    """

    def __init__(
        self,
        store: Store,
        rows: range,
        cutoff: float,
        max_neighbors: int | None,
        progress: Callable[[int], None] = lambda structures: None,
    ) -> None:
        self._first_row = rows.start
        self._n_atoms = store.n_atoms[rows.start : rows.stop]
        senders, shifts, counts, bounded = [], [], [], []
        for start in range(rows.start, rows.stop, _STRUCTURES_AT_ONCE):
            piece = store.take(np.arange(start, min(rows.stop, start + _STRUCTURES_AT_ONCE)))
            edges = find_edges(piece, cutoff, max_neighbors)
            first_atom = np.repeat(piece.offsets[:-1], piece.n_atoms)[edges.receiver]
            senders.append((edges.sender - first_atom).astype(np.int32))
            if len(edges) and np.abs(edges.shift).max() > 127:
                raise ValueError("a cell is so small that more than 127 of its images lie within the cutoff")
            shifts.append(edges.shift.astype(np.int8))
            counts.append(np.bincount(edges.receiver, minlength=len(piece.numbers)))
            bounded.append(edges.horizon >= 0)
            progress(len(piece))
        self._sender, self._shift = np.concatenate(senders), np.concatenate(shifts)
        self._edges_of_atom = np.concatenate(counts)
        self._bounded = np.concatenate(bounded)
        self._first_edge = np.cumsum(self._edges_of_atom) - self._edges_of_atom
        self._first_atom = np.cumsum(self._n_atoms) - self._n_atoms

    def __len__(self) -> int:
        return len(self._sender)

    def take(self, rows: NDArray[np.int64]) -> Edges:
        """The edges of the structures at store rows `rows`, numbered within them."""
        index = rows - self._first_row
        n_atoms = self._n_atoms[index]
        atoms = atom_rows(self._first_atom[index], n_atoms)
        counts = self._edges_of_atom[atoms]
        edges = atom_rows(self._first_edge[atoms], counts)
        receiver = np.repeat(np.arange(len(atoms)), counts)
        structure_start = np.repeat(np.cumsum(n_atoms) - n_atoms, n_atoms)
        last_edge = np.cumsum(counts) - 1
        return Edges(
            receiver=receiver,
            sender=self._sender[edges] + structure_start[receiver],
            shift=self._shift[edges].astype(np.int32),
            horizon=np.where(self._bounded[atoms], last_edge, -1),
        )
