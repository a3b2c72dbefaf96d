"""Structures equal to an earlier one: same elements in the same order, same charge and spin, same positions and cell
within a tolerance.

Hashing coordinates rounded to a grid misses pairs that noise separates by a grid line (with 20 atoms, every other pair,
if the noise is a hundredth of the grid). Instead, candidates are found by two projections of the geometry, whose change
by noise below the tolerance is bounded, and are then compared coordinate by coordinate: all pairs below the tolerance
are found, and none above it is dropped.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.packing import pieces_of
from ramify.prepare.checks.fingerprints import GOLDEN, projection_reach
from ramify.structures import STATES, atom_rows

Rows = NDArray[np.int64]
Projections = NDArray[np.float64]
Column = Callable[[str], NDArray[Any]]
"""A column of all structures by its name, as in `Structures`."""
Equal = Callable[[Rows, Rows, float], NDArray[np.bool_]]
"""`equal(i, j, tolerance)`: whether structures i and j (both (P,)) are equal within `tolerance` Å."""

TOLERANCE = 1e-4
"""Å, maximum difference of each coordinate of two equal structures."""
ATOMS_AT_ONCE = 200_000
STRUCTURES_AT_ONCE = 500_000
ODD = 0xBF58476D1CE4E5B9
"""Mixes a second number into a hash, as `GOLDEN` does the first."""


def earlier_equals(
    sequence: NDArray[np.uint64], projection: Projections, n_atoms: NDArray[np.integer], equal: Equal
) -> Rows:
    """(S,) the earlier structure that each one repeats, -1 for first occurrences.

    A structure is compared only with earlier ones that are kept, so that a slow drift is not treated as repetition.

    Args:
        sequence, projection: (S,), (S, 2), see `ramify.prepare.checks.fingerprints.Fingerprints`.
        n_atoms: (S,) number of atoms of each structure.
        equal: function that compares structures; called for likely pairs only.
    """
    earlier = np.full(len(sequence), -1, np.int64)
    for rows in _comparable(sequence):
        order = _mark_exact(rows, sequence, projection, equal, earlier)
        rest = order[earlier[order] < 0]
        pairs = [np.empty((0, 2), np.int64), *_close_pairs(rest, sequence, projection, n_atoms, equal)]
        for later, first in np.unique(np.concatenate(pairs), axis=0):  # sorted by the later structure
            if earlier[first] < 0 and earlier[later] < 0:
                earlier[later] = first
    copies = np.flatnonzero(earlier >= 0)
    repeated = copies[earlier[earlier[copies]] >= 0]  # exact copies of a structure that itself repeats another
    earlier[repeated] = earlier[earlier[repeated]]
    return earlier


def _comparable(sequence: NDArray[np.uint64]) -> Iterator[Rows]:
    """Yields all rows in blocks of bounded size, grouped by sequence and in source order."""
    order = np.argsort(sequence, kind="stable")
    start = 0
    while start < len(order):
        last = sequence[order[min(start + STRUCTURES_AT_ONCE, len(order)) - 1]]
        stop = start + int(np.searchsorted(sequence[order[start:]], last, side="right"))
        yield order[start:stop]
        start = stop


def equal_structures(column: Column, offsets: Rows, i: Rows, j: Rows, tolerance: float) -> NDArray[np.bool_]:
    """(P,) whether structures i and j are equal within `tolerance` Å; `offsets` (S + 1,) are their first atoms."""
    pbc, cell, positions, n_atoms = column("pbc"), column("cell"), column("positions"), offsets[i + 1] - offsets[i]
    same: NDArray[np.bool_] = n_atoms == offsets[j + 1] - offsets[j]
    for state in map(column, STATES):
        same &= (state[i] == state[j]) | (np.isnan(state[i]) & np.isnan(state[j]))
    for atom in (offsets[:-1], offsets[1:] - 1):  # the first and the last atom distinguish most pairs
        apart = np.abs(np.take(positions, atom[i], axis=0).astype(np.float64) - np.take(positions, atom[j], axis=0))
        same &= apart.max(axis=1, initial=0.0) <= tolerance
    candidates = np.flatnonzero(same)
    i_, j_ = i[candidates], j[candidates]
    moved = np.abs(cell[i_].astype(np.float64) - cell[j_]) * pbc[i_][:, :, None]
    same[candidates] = (pbc[i_] == pbc[j_]).all(axis=1) & (moved.max(axis=(1, 2), initial=0.0) <= tolerance)
    candidates = np.flatnonzero(same)
    for some in pieces_of(n_atoms[candidates], ATOMS_AT_ONCE):
        part = candidates[some]
        n = n_atoms[part]
        first, second = atom_rows(offsets[i[part]], n), atom_rows(offsets[j[part]], n)
        starts = np.cumsum(n) - n
        positions, numbers = column("positions"), column("numbers")  # mapped anew: see `Staged`
        moved = np.take(positions, first, axis=0).astype(np.float64)
        moved -= np.take(positions, second, axis=0)
        near = np.maximum.reduceat(np.abs(moved), starts, axis=0).max(axis=1) <= tolerance
        alike = np.take(numbers, first) == np.take(numbers, second)
        same[part] = near & np.logical_and.reduceat(alike, starts)
    return same


def _mark_exact(rows: Rows, sequence: NDArray[np.uint64], projection: Projections, equal: Equal, earlier: Rows) -> Rows:
    """Marks exact copies first, comparing only adjacent rows after sorting, for any number of copies.

    Returns:
        `rows` sorted so that equal ones are adjacent.
    """
    bits = projection[rows].view(np.uint64)
    key = sequence[rows] + bits[:, 0] * np.uint64(GOLDEN) + bits[:, 1] * np.uint64(ODD)
    by_key = np.argsort(key, kind="stable")  # ties stay in source order
    order, key = rows[by_key], key[by_key]
    candidates = np.flatnonzero(key[1:] == key[:-1])
    copies = 1 + candidates[equal(order[candidates], order[candidates + 1], 0.0)]
    first = np.arange(len(order))
    first[copies] = 0
    earlier[order[copies]] = order[np.maximum.accumulate(first)[copies]]
    return order


def _close_pairs(
    rest: Rows, sequence: NDArray[np.uint64], projection: Projections, n_atoms: NDArray[np.integer], equal: Equal
) -> Iterator[Rows]:
    """(P, 2) pairs (later, earlier) of equal structures among `rest`.

    The plane of the two projections is divided into square cells twice as wide as the tolerance, in four grids shifted
    by half a cell along each axis: two equal structures share a cell in at least one grid. All pairs within a cell are
    compared, in the first grid in which they share one.
    """
    # how far noise below the tolerance moves a projection, and how exact a sum in float64 is
    width = projection_reach(n_atoms[rest]) * TOLERANCE + np.abs(projection[rest]).max(initial=0.0) * 2.0**-48
    scaled = projection[rest] / (2 * width[:, None])
    cuts = [(0.0, 0.0), (0.0, 0.5), (0.5, 0.0), (0.5, 0.5)]
    keys: list[NDArray[np.uint64]] = []
    for cut in cuts:
        cell = np.floor(scaled + np.array(cut)).astype(np.int64).view(np.uint64)
        keys.append(sequence[rest] + cell[:, 0] * np.uint64(GOLDEN) + cell[:, 1] * np.uint64(ODD))
        order = np.argsort(keys[-1])
        key = keys[-1][order]
        left, lag = np.flatnonzero(key[1:] == key[:-1]), 1
        while len(left):
            a, b = order[left], order[left + lag]
            near = (np.abs(scaled[a] - scaled[b]) <= 0.5).all(axis=1)
            for before in keys[:-1]:
                near &= before[a] != before[b]
            i, j = rest[a[near]], rest[b[near]]
            found = equal(i, j, TOLERANCE)
            yield np.stack([np.maximum(i, j)[found], np.minimum(i, j)[found]], axis=1)
            lag += 1
            left = left[left + lag < len(order)]
            left = left[key[left] == key[left + lag]]
