"""Compact index of the first atom of each structure, without eight bytes per structure in every process."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

STRIDE = 8
"""Structures per entry of the table: one byte per structure (544 MB for 544 million), and up to 7 additions per
lookup."""


_ENTRIES_AT_ONCE = 1 << 13


class RowIndex:
    """Index of the start of each of S contiguous rows of variable length.

    Args:
        n_atoms: (S,) int32; mapped or shared memory, which is not copied.
        lengths: function from numbers of atoms to lengths of rows; identity by default.

    Attributes:
        total: total length of all rows.
        shortest: length of the shortest row; 1 if there are no rows.
    """

    def __init__(self, n_atoms: NDArray[np.int32], lengths: Callable[[Rows], Rows] = lambda n_atoms: n_atoms) -> None:
        self._n_atoms, self._lengths = n_atoms, lengths
        self.shortest = 1
        sums = [np.zeros(1, np.int64)]
        step = STRIDE * _ENTRIES_AT_ONCE
        for start in range(0, len(n_atoms), step):
            piece = lengths(n_atoms[start : start + step].astype(np.int64))
            self.shortest = min(self.shortest, int(piece.min()))
            sums.append(np.add.reduceat(piece, np.arange(0, len(piece), STRIDE)))
        self._starts = np.cumsum(np.concatenate(sums))
        self.total = int(self._starts[-1])

    def __len__(self) -> int:
        return len(self._n_atoms)

    def starts(self, rows: Rows) -> Rows:
        """Start of each of `rows` (T,); for `len(self)`, the end of the last row."""
        entry = rows // STRIDE
        first = entry * STRIDE
        before = self._n_atoms.take(first[:, None] + _PLACES, mode="clip")  # values beyond the end are masked
        lengths = self._lengths(before.astype(np.int64))
        lengths *= (rows - first)[:, None] > _PLACES
        starts: Rows = self._starts.take(entry) + lengths.sum(axis=1)
        return starts

    def shares(self, parts: int) -> list[int]:
        """Boundaries (`parts` + 1 rows) of parts of about equal length, multiples of `STRIDE` or the end."""
        entries = np.searchsorted(self._starts, np.arange(parts + 1) * self.total / parts)
        return [0, *np.minimum(entries[1:-1] * STRIDE, len(self)).tolist(), len(self)]


_PLACES = np.arange(STRIDE - 1)
