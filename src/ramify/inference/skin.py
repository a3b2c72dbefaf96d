"""Neighbour lists with a skin, reused while the atoms move little (Verlet lists).

The search radius exceeds the required radius by a skin. Let R be the required radius,
x0 and A0 the positions and the cell at the last search, x and A the current ones, and F the deformation from A0 to A.
The displacement relative to F and a common shift is u = x - x0 F - mean(x - x0 F). A pair whose distance was above
R + skin now has a distance above s (R + skin) - 2 max|u|, where s is the smallest singular value of F: as long as this
is at least R, no pair is missed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ramify.inference.passes.inputs import edge_vectors
from ramify.inference.screen import closest_pairs
from ramify.neighbors.all_pairs import Pairs
from ramify.neighbors.edges import Edges, edges_among, find_pairs, search_radius
from ramify.structures import Structures


@dataclass(frozen=True, slots=True)
class _Search:
    structures: Structures
    pairs: Pairs


class SkinNeighbors:
    """Edges of one or several moving structures, equal to those of `find_edges`.

    Args:
        cutoff: Å.
        max_neighbors: largest number per atom.
        skin: Å; a thicker skin needs fewer searches but keeps more pairs.
        device: kind of device for the search in large structures.

    Attributes:
        searches: number of searches done.
    """

    def __init__(self, cutoff: float, max_neighbors: int | None, skin: float, device: str = "cpu") -> None:
        self._cutoff, self._max_neighbors, self._skin, self._device = cutoff, max_neighbors, skin, device
        self._radius = search_radius(cutoff, max_neighbors)
        self._last: _Search | None = None
        self.searches = 0

    def find(self, structures: Structures) -> tuple[Edges, NDArray[np.float64]]:
        """The edges of structures with at least one atom each, and smallest distances (S,) in Å (inf: no pair)."""
        if self._last is None or not self._reusable(self._last.structures, structures):
            self._last = _Search(structures, find_pairs(structures, self._radius + self._skin, device=self._device))
            self.searches += 1
        pairs = self._last.pairs
        distance = _distances(structures, pairs)
        inside = np.flatnonzero(distance < self._radius)  # `take` with indices is faster than with a mask
        pairs = Pairs(
            pairs.receiver.take(inside),
            pairs.sender.take(inside),
            pairs.shift.take(inside, axis=0),
            distance.take(inside),
        )
        edges = edges_among(pairs, len(structures.numbers), self._cutoff, self._max_neighbors)
        return edges, closest_pairs(structures, pairs)

    def _reusable(self, before: Structures, now: Structures) -> bool:
        """Whether no pair from outside radius and skin can have come within the radius."""
        same = ("n_atoms", "numbers", "pbc")
        if not all(np.array_equal(getattr(before, name), getattr(now, name)) for name in same):
            return False
        deformation = np.tile(np.eye(3), (len(now), 1, 1))
        periodic = now.pbc.any(axis=1)
        deformed = periodic & (before.cell != now.cell).any(axis=(1, 2))
        if not now.pbc[deformed].all():  # would need separate treatment of the non-periodic directions
            return False
        smallest = np.ones(len(now))
        if deformed.any():
            deformation[deformed] = np.linalg.solve(before.cell[deformed], now.cell[deformed])
            smallest[:] = np.linalg.svd(deformation, compute_uv=False)[:, -1]
        of_atom, first = now.structure_of_atom, now.offsets[:-1]
        moved = now.positions - np.einsum("nk,nkc->nc", before.positions, deformation[of_atom])
        moved -= (np.add.reduceat(moved, first) / now.n_atoms[:, None])[of_atom]
        farthest = np.maximum.reduceat(np.linalg.norm(moved, axis=1), first)
        return bool((smallest * (self._radius + self._skin) - 2 * farthest >= self._radius).all())


def _distances(structures: Structures, pairs: Pairs) -> NDArray[np.float64]:
    """(P,) Å, current distances of the pairs."""
    vector = edge_vectors(structures, pairs, structures.structure_of_atom)
    square = vector[:, 0] ** 2
    for axis in (1, 2):  # three passes over columns take a quarter of the time of `np.linalg.norm` over rows
        square += vector[:, axis] ** 2
    distances: NDArray[np.float64] = np.sqrt(square)
    return distances
