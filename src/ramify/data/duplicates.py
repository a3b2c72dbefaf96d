"""Structures equal to an earlier one: same elements in the same order, same positions and cell within a tolerance.

Rounding coordinates to a grid and hashing them misses pairs that rounding noise puts on two sides of a grid line (with
20 atoms every other pair, when the noise is a hundredth of the grid). So candidates are found by two projections of
the geometry, which noise below the tolerance moves by no more than a known amount, and are then compared coordinate by
coordinate: nothing below the tolerance is missed, nothing above it is dropped.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ramify.data.fingerprints import GOLDEN, projection_reach
from ramify.structures import atom_rows

Rows = NDArray[np.int64]
Projections = NDArray[np.float64]
Equal = Callable[[Rows, Rows, float], NDArray[np.bool_]]
"""`equal(i, j, tolerance)`: whether structures i and j (both (P,)) are equal within `tolerance` Å."""

TOLERANCE = 1e-4
"""Å by which every coordinate of two equal structures may differ."""
ATOMS_AT_ONCE = 200_000
STRUCTURES_AT_ONCE = 500_000


class Columns(Protocol):
    """What is compared: the columns of `Structures` of that name."""

    @property
    def n_atoms(self) -> NDArray[np.integer]: ...
    @property
    def numbers(self) -> NDArray[np.uint8]: ...
    @property
    def positions(self) -> NDArray[np.floating]: ...
    @property
    def cell(self) -> NDArray[np.floating]: ...
    @property
    def pbc(self) -> NDArray[np.bool_]: ...


def earlier_equals(
    sequence: NDArray[np.uint64], projection: Projections, n_atoms: NDArray[np.integer], equal: Equal
) -> Rows:
    """(S,) the earlier structure that each one repeats, -1 where it is the first of its kind.

    A structure is compared with earlier ones that are kept, so that a slow drift is not taken for one long repetition.

    Args:
        sequence, projection: (S,), (S, 2), see `ramify.data.fingerprints.Fingerprints`.
        n_atoms: (S,) atoms of each structure.
        equal: compares structures themselves; called for likely pairs only.
    """
    earlier = np.full(len(sequence), -1, np.int64)
    for rows in _comparable(sequence):
        order = rows[np.lexsort((projection[rows, 1], projection[rows, 0], sequence[rows]))]
        _mark_exact(order, sequence, projection, equal, earlier)
        rest = order[earlier[order] < 0]
        pairs = [np.empty((0, 2), np.int64), *_close_pairs(rest, sequence, projection, n_atoms, equal)]
        for later, first in np.unique(np.concatenate(pairs), axis=0):  # sorted by the later structure
            if earlier[first] < 0 and earlier[later] < 0:
                earlier[later] = first
    copies = np.flatnonzero(earlier >= 0)
    repeated = copies[earlier[earlier[copies]] >= 0]  # exact copies of what then turned out to repeat another
    earlier[repeated] = earlier[earlier[repeated]]
    return earlier


def _comparable(sequence: NDArray[np.uint64]) -> Iterator[Rows]:
    """All rows in blocks of bounded size, those of one sequence together and in source order."""
    order = np.argsort(sequence, kind="stable")
    start = 0
    while start < len(order):
        last = sequence[order[min(start + STRUCTURES_AT_ONCE, len(order)) - 1]]
        stop = start + int(np.searchsorted(sequence[order[start:]], last, side="right"))
        yield order[start:stop]
        start = stop


def equal_structures(columns: Columns, offsets: Rows, i: Rows, j: Rows, tolerance: float) -> NDArray[np.bool_]:
    """(P,) whether structures i and j of `columns` are equal within `tolerance` Å; `offsets` are their first atoms."""
    same: NDArray[np.bool_] = (columns.pbc[i] == columns.pbc[j]).all(axis=1)
    same &= columns.n_atoms[i] == columns.n_atoms[j]
    apart = np.abs(columns.cell[i].astype(np.float64) - columns.cell[j]) * columns.pbc[i][:, :, None]
    same &= apart.max(axis=(1, 2), initial=0.0) <= tolerance
    candidates = np.flatnonzero(same)
    counts = columns.n_atoms[i[candidates]].astype(np.int64)
    for part in np.split(candidates, np.flatnonzero(np.diff(np.cumsum(counts) // ATOMS_AT_ONCE)) + 1):
        if not len(part):
            continue
        n = columns.n_atoms[i[part]].astype(np.int64)
        first, second = atom_rows(offsets[i[part]], n), atom_rows(offsets[j[part]], n)
        starts = np.cumsum(n) - n
        moved = np.take(columns.positions, first, axis=0).astype(np.float64)
        moved -= np.take(columns.positions, second, axis=0)
        near = np.maximum.reduceat(np.abs(moved), starts, axis=0).max(axis=1) <= tolerance
        alike = np.take(columns.numbers, first) == np.take(columns.numbers, second)
        same[part] = near & np.logical_and.reduceat(alike, starts)
    return same


def _mark_exact(
    order: Rows, sequence: NDArray[np.uint64], projection: Projections, equal: Equal, earlier: Rows
) -> None:
    """Marks exact copies first: however many there are of one structure, each is compared with its neighbour only."""
    a, b = order[:-1], order[1:]
    same = (sequence[a] == sequence[b]) & (projection[a] == projection[b]).all(axis=1)
    candidates = np.flatnonzero(same)
    same[candidates] = equal(a[candidates], b[candidates], 0.0)
    starts = np.where(np.append(False, same), 0, np.arange(len(order)))
    copies = np.flatnonzero(same) + 1
    earlier[order[copies]] = order[np.maximum.accumulate(starts)[copies]]


def _close_pairs(
    rest: Rows, sequence: NDArray[np.uint64], projection: Projections, n_atoms: NDArray[np.integer], equal: Equal
) -> Iterator[Rows]:
    """(P, 2) pairs (later, earlier) of equal structures among `rest`.

    Structures are put into cells of the first projection twice as wide as the tolerance, sorted by the second one
    within a cell, and compared with those that follow as long as these are near. A second round with all cells moved by
    half their width brings together what a cell border kept apart in the first, and only that.
    """
    # how far noise below the tolerance moves a projection, and how exact a sum in float64 is
    width = projection_reach(n_atoms[rest]) * TOLERANCE + np.abs(projection[rest]).max(initial=0.0) * 2.0**-48
    p0, p1 = projection[rest, 0], projection[rest, 1]
    cells = [np.floor(p0 / (2 * width) + half).astype(np.int64).view(np.uint64) for half in (0.0, 0.5)]
    for turn, cell in enumerate(cells):
        key = sequence[rest] + cell * np.uint64(GOLDEN)
        order = np.lexsort((p1, key))
        left = np.arange(len(rest) - 1)
        lag = 1
        while len(left):
            a, b = order[left], order[left + lag]
            near = (key[a] == key[b]) & (p1[b] - p1[a] <= width[a])
            left, a, b = left[near], a[near], b[near]
            both = np.abs(p0[a] - p0[b]) <= width[a]
            if turn == 1:
                both &= cells[0][a] != cells[0][b]
            i, j = rest[a[both]], rest[b[both]]
            found = equal(i, j, TOLERANCE)
            yield np.stack([np.maximum(i, j)[found], np.minimum(i, j)[found]], axis=1)
            lag += 1
            left = left[left + lag < len(rest)]
