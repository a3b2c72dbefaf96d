"""Fingerprints of structures in one vectorised pass over all atoms: composition, sequence of elements, geometry.

Hashes are 64-bit sums modulo 2^64 of pseudo-random terms (multilinear hashing): the probability of a collision among C
values is about C²/2^65, 3e-8 for a million compositions. Before a structure is dropped, the structures themselves are
compared (`ramify.prepare.checks.duplicates`).
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ramify.elements import MAX_NUMBER
from ramify.structures import Structures

T = TypeVar("T", bound=np.generic)

GOLDEN = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio: the increment of splitmix64 (Steele, Lea, Flood, doi:10.1145/2660193.2660195)."""


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """One row per structure.

    Attributes:
        composition: (S,) uint64, equal for equal numbers of atoms of each element, in any order.
        sequence: (S,) uint64, equal for equal elements in the same order, equal periodic axes, and equal charge and
            spin.
        projection: (S, 2) float64, two weighted sums of positions and cell, Å.
    """

    composition: NDArray[np.uint64]
    sequence: NDArray[np.uint64]
    projection: NDArray[np.float64]


def fingerprints(structures: Structures) -> Fingerprints:
    """Fingerprints of structures that each have at least one atom, with finite positions and cells."""
    offsets = structures.offsets
    largest = int(structures.n_atoms.max(initial=0))
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], structures.n_atoms)  # index within the structure
    elements = scramble(np.arange(1, MAX_NUMBER + 2, dtype=np.uint64))
    places = scramble(np.arange(1000, 1000 + largest, dtype=np.uint64)) | np.uint64(1)
    of_atom = np.take(elements, structures.numbers)
    weights = geometry_weights(largest + 3)
    projection = np.empty((len(structures), 2))
    cell = structures.cell * structures.pbc[:, :, None]  # cell vectors without periodicity are irrelevant
    for k in range(2):
        moved = np.einsum("nc,nc->n", structures.positions, np.take(weights[k, 3:], place, axis=0))
        projection[:, k] = _sums(moved, offsets) + np.einsum("sij,ij->s", cell, weights[k, :3])
    axes = structures.pbc.astype(np.uint64) @ np.array([1, 2, 4], np.uint64)
    return Fingerprints(
        composition=_sums(of_atom, offsets),
        sequence=_sums(of_atom * np.take(places, place), offsets)
        ^ scramble(axes)
        ^ state_hash(structures.charge, structures.spin),
        projection=projection,
    )


def state_hash(charge: NDArray[np.floating], spin: NDArray[np.floating]) -> NDArray[np.uint64]:
    """(S,) hash of charge and spin, 0 where neither is stated."""
    codes = [np.where(np.isnan(v), 0, np.nan_to_num(v) + (1 << 16)).astype(np.int64) for v in (charge, spin)]
    packed = ((codes[0] << 20) + codes[1]).astype(np.uint64)
    return np.where(packed > 0, scramble(packed + np.uint64(1 << 48)), np.uint64(0))


def formula_hash(structures: Structures) -> NDArray[np.uint64]:
    """(S,) hash of the reduced formula, equal e.g. for Si2 and Si64."""
    S, elements = len(structures), MAX_NUMBER + 1
    place = structures.structure_of_atom * elements + structures.numbers
    counts = np.bincount(place, minlength=S * elements).reshape(S, elements)
    reduced = counts // np.gcd.reduce(counts, axis=1)[:, None]
    hashes: NDArray[np.uint64] = reduced.astype(np.uint64) @ scramble(np.arange(1, elements + 1, dtype=np.uint64))
    return hashes


def projection_reach(n_atoms: NDArray[np.integer]) -> NDArray[np.float64]:
    """(S,) maximum change of a projection, in units of the largest displacement of a coordinate."""
    weights = geometry_weights(int(n_atoms.max(initial=0)) + 3)
    reach: NDArray[np.float64] = np.abs(weights).sum(axis=2).max(axis=0).cumsum()[n_atoms + 2]
    return reach


def geometry_weights(rows: int) -> NDArray[np.float64]:
    """(2, rows, 3) fixed numbers in ±(1/2 .. 1), independent of `rows`; the first three rows weight the cell."""
    bits = scramble(np.arange(6 * rows, dtype=np.uint64) + np.uint64(1 << 32)).reshape(rows, 2, 3).transpose(1, 0, 2)
    size = 0.5 + (bits >> np.uint64(12)) * 2.0**-53
    return np.where(bits & np.uint64(1), size, -size)


def scramble(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64: a fixed pseudo-random 64-bit number for each value."""
    z = values * np.uint64(GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _sums(values: NDArray[T], offsets: NDArray[np.int64]) -> NDArray[T]:
    """(S,) sums over the atoms of each structure, in the type of `values` (integers wrap around)."""
    total: NDArray[T] = np.add.reduceat(values, offsets[:-1]) if len(offsets) > 1 else values[:0]
    return total
