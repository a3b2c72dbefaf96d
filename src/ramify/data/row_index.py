"""Where the atoms of each structure begin, without eight bytes per structure in every process."""

import numpy as np
from numpy.typing import NDArray

STRIDE = 16
"""Structures per entry of the table: 0.5 bytes per structure (270 MB for 544 million), and up to 15 neighbours to add
up for every row that is looked up."""


class RowIndex:
    """First atoms of S structures from the number of atoms of each.

    Args:
        n_atoms: (S,) int32; mapped or shared memory, of which nothing is copied.

    Attributes:
        n_atoms: as given.
        atoms: of all structures.
        smallest: atoms of the smallest structure; 1 if there is none.
    """

    def __init__(self, n_atoms: NDArray[np.int32]) -> None:
        self.n_atoms = n_atoms
        whole = len(n_atoms) // STRIDE * STRIDE
        sums = n_atoms[:whole].reshape(-1, STRIDE).sum(axis=1, dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(sums)])
        self.atoms = int(self._starts[-1]) + int(n_atoms[whole:].sum(dtype=np.int64))
        self.smallest = int(n_atoms.min(initial=1))

    def __len__(self) -> int:
        return len(self.n_atoms)

    def starts(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first atom of each of `rows` (T,); `len(self)` may be asked for too."""
        entry, place = np.divmod(rows, STRIDE)
        before = entry[:, None] * STRIDE + _PLACES
        n_atoms = np.take(self.n_atoms, before, mode="clip")  # the last entry may be cut short; it is masked below
        n_atoms *= place[:, None] > _PLACES
        starts: NDArray[np.int64] = self._starts[entry] + n_atoms.sum(axis=1)
        return starts


_PLACES = np.arange(STRIDE - 1)
