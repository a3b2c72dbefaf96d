"""Structures equal to an earlier one: the same elements in the same order, positions and periodic cell within a tolerance.

Rounding coordinates to a grid and hashing them misses pairs that rounding noise puts on two sides of a grid line (with
20 atoms nearly every pair, when the noise is a hundredth of the grid). So candidates are found by two projections of the
geometry, which noise below the tolerance moves by no more than a known amount, and are then compared coordinate by
coordinate: nothing below the tolerance is missed, nothing above it is dropped.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ramify.structures import atom_rows

Rows = NDArray[np.int64]
Projections = NDArray[np.float64]
Equal = Callable[[Rows, Rows, float], NDArray[np.bool_]]
"""`equal(i, j, tolerance)`: whether structures i and j (both (P,)) are equal within `tolerance` Å."""

TOLERANCE = 1e-4
"""Å by which every coordinate of two equal structures may differ."""
ATOMS_AT_ONCE = 200_000


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
    sequence: NDArray[np.uint64], projection: Projections, reach: NDArray[np.float64], equal: Equal
) -> Rows:
    """(S,) the earlier structure that each one repeats, -1 where it is the first of its kind.

    A structure is compared with earlier ones that are kept, so that a slow drift is not taken for one long repetition.

    Args:
        sequence, projection, reach: see `ramify.data.fingerprints.Fingerprints`.
        equal: compares structures themselves; called for likely pairs only.
    """
    earlier = np.full(len(sequence), -1, np.int64)
    order = np.lexsort((projection[:, 1], projection[:, 0], sequence))  # stable: ties stay in source order
    _mark_exact(order, sequence, projection, equal, earlier)
    rest = order[earlier[order] < 0]
    pairs = [np.empty((0, 2), np.int64), *_close_pairs(rest, sequence, projection, reach, equal)]
    for later, first in np.unique(np.concatenate(pairs), axis=0):  # sorted by the later structure
        if earlier[first] < 0 and earlier[later] < 0:
            earlier[later] = first
    copies = np.flatnonzero(earlier >= 0)
    repeated = copies[earlier[earlier[copies]] >= 0]  # exact copies of what then turned out to repeat another
    earlier[repeated] = earlier[earlier[repeated]]
    return earlier


def equal_structures(columns: Columns, offsets: Rows, i: Rows, j: Rows, tolerance: float) -> NDArray[np.bool_]:
    """(P,) whether structures i and j of `columns` are equal within `tolerance` Å; `offsets` are their first atoms."""
    same: NDArray[np.bool_] = (columns.n_atoms[i] == columns.n_atoms[j]) & (columns.pbc[i] == columns.pbc[j]).all(axis=1)
    apart = np.abs(columns.cell[i].astype(np.float64) - columns.cell[j]) * columns.pbc[i][:, :, None]
    same &= apart.max(axis=(1, 2), initial=0.0) <= tolerance
    candidates = np.flatnonzero(same)
    counts = columns.n_atoms[i[candidates]].astype(np.int64)
    for part in np.split(candidates, np.flatnonzero(np.diff(np.cumsum(counts) // ATOMS_AT_ONCE)) + 1):
        if not len(part):
            continue
        n = columns.n_atoms[i[part]].astype(np.int64)
        first, second = atom_rows(offsets[i[part]], n), atom_rows(offsets[j[part]], n)
        distance = np.abs(columns.positions[first].astype(np.float64) - columns.positions[second]).max(axis=1)
        differs = (columns.numbers[first] != columns.numbers[second]) | (distance > tolerance)
        same[part] = ~np.logical_or.reduceat(differs, np.cumsum(n) - n)
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
    rest: Rows, sequence: NDArray[np.uint64], projection: Projections, reach: NDArray[np.float64], equal: Equal
) -> Iterator[Rows]:
    """(P, 2) pairs (later, earlier) of equal structures among `rest`.

    Structures are put into cells of the first projection twice as wide as the tolerance, sorted by the second one within
    a cell, and compared with those that follow as long as these are near. A second round with all cells moved by half
    their width brings together what a cell border kept apart in the first.
    """
    # how far noise below the tolerance moves a projection, and how exact a sum in float64 is
    width = reach[rest] * TOLERANCE + np.abs(projection[rest]).max(initial=0.0) * 2.0**-48
    p0, p1 = projection[rest, 0], projection[rest, 1]
    for half in (0.0, 0.5):
        cell = np.floor(p0 / (2 * width) + half).astype(np.int64).view(np.uint64)
        key = sequence[rest] + cell * np.uint64(0x9E3779B97F4A7C15)
        order = np.lexsort((p1, key))
        left = np.arange(len(rest) - 1)
        lag = 1
        while len(left):
            a, b = order[left], order[left + lag]
            near = (key[a] == key[b]) & (p1[b] - p1[a] <= width[a])
            left, a, b = left[near], a[near], b[near]
            both = np.abs(p0[a] - p0[b]) <= width[a]
            i, j = rest[a[both]], rest[b[both]]
            found = equal(i, j, TOLERANCE)
            yield np.stack([np.maximum(i, j)[found], np.minimum(i, j)[found]], axis=1)
            lag += 1
            left = left[left + lag < len(rest)]
