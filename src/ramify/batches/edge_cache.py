"""Cache of the edges of all structures of a split, within a memory limit."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ramify.errors import RamifyError
from ramify.neighbors.edges import CutoffPairs, Edges, find_edges
from ramify.store.store import Store
from ramify.structures import Structures, atom_rows

_STRUCTURES_AT_ONCE = 2000

BYTES_PER_EDGE = 4 + 3 + 4
"""Bytes per edge: sender as int32 within its structure, three lattice steps as int8, and about as much again for cutoff
pairs; receivers follow from counts."""


class EdgeCache:
    """Edges of the structures `rows` of a store, as flat columns.

    `take` returns exactly the edges that `find_edges` returns for the same structures.
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
        self._n_atoms = store.n_atoms[rows.start : rows.stop].astype(np.int64)
        self._first_atom = np.cumsum(self._n_atoms) - self._n_atoms
        edges, cutoff_pairs, atom_cutoffs, gains = [], [], [], []
        for start in range(rows.start, rows.stop, _STRUCTURES_AT_ONCE):
            piece = store.take(np.arange(start, min(rows.stop, start + _STRUCTURES_AT_ONCE)))
            found = find_edges(piece, cutoff, max_neighbors)
            edges.append(_packed(piece, found))
            cutoff_pairs.append(_packed(piece, found.cutoff_pairs))
            atom_cutoffs.append(found.atom_cutoff)
            gains.append(found.cutoff_pairs.gain)
            progress(len(piece))
        self._edges, self._cutoff_pairs = _PairTable(edges), _PairTable(cutoff_pairs)
        self._atom_cutoff, self._gain = np.concatenate(atom_cutoffs), np.concatenate(gains)
        self._edge_counts = self._edges.counts(self._first_atom)

    def edge_counts(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """(T,) number of edges of the structures at store rows `rows`."""
        return self._edge_counts[rows - self._first_row]

    def take(self, rows: NDArray[np.int64]) -> Edges:
        """Returns the edges of the structures at store rows `rows`, with atom indices within them."""
        index = rows - self._first_row
        n_atoms = self._n_atoms[index]
        atoms = atom_rows(self._first_atom[index], n_atoms)
        first_atom = np.repeat(np.cumsum(n_atoms) - n_atoms, n_atoms)
        receiver, sender, shift, _ = self._edges.take(atoms, first_atom)
        cutoff_receiver, cutoff_sender, cutoff_shift, cutoff_pairs = self._cutoff_pairs.take(atoms, first_atom)
        return Edges(
            receiver,
            sender,
            shift,
            self._atom_cutoff[atoms],
            CutoffPairs(cutoff_receiver, cutoff_sender, cutoff_shift, self._gain[cutoff_pairs]),
        )


_Packed = tuple[NDArray[np.int32], NDArray[np.int8], NDArray[np.int64]]
"""sender within its structure, lattice steps, pairs of each atom."""


def _packed(structures: Structures, pairs: Edges | CutoffPairs) -> _Packed:
    if len(pairs) and np.abs(pairs.shift).max() > 127:
        raise RamifyError(
            "atoms are more than 127 lattice vectors from their neighbours, the limit of the edge cache",
            fix="set train.edge_cache: 0 to find edges for every batch, or wrap the positions into the cell",
        )
    first_atom = np.repeat(structures.offsets[:-1], structures.n_atoms)[pairs.receiver]
    counts = np.bincount(pairs.receiver, minlength=len(structures.numbers))
    return (pairs.sender - first_atom).astype(np.int32), pairs.shift.astype(np.int8), counts


class _PairTable:
    """Table of the pairs of all atoms, contiguous by receiver."""

    def __init__(self, parts: list[_Packed]) -> None:
        self._sender, self._shift, self._count = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        self._first = np.cumsum(self._count) - self._count

    def counts(self, first_atom: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of pairs of each structure; `first_atom` are the first atoms of the structures, none of them empty."""
        return np.add.reduceat(self._count, first_atom)

    def take(
        self, atoms: NDArray[np.int64], first_atom: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
        """Receiver, sender and shift of the pairs of `atoms`, and their positions in the table."""
        counts = self._count[atoms]
        pairs = atom_rows(self._first[atoms], counts)
        receiver = np.repeat(np.arange(len(atoms)), counts)
        return receiver, self._sender[pairs] + first_atom[receiver], self._shift[pairs].astype(np.int32), pairs
