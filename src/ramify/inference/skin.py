"""Neighbours that are found once and used again while atoms move little.

Pairs are searched with a radius that is larger than needed by a skin. Let R be the radius needed, x0 the positions and
A0 the cell when pairs were searched, x and A those of now, and F the deformation that takes A0 to A. What F and a
common shift do not explain is u = x - x0 F - mean(x - x0 F). A pair that was farther apart than R + skin is now farther
apart than s (R + skin) - 2 max|u|, s the smallest singular value of F: as long as that is at least R, none is missed.
"""

from dataclasses import dataclass, replace

import numpy as np

from ramify.data.neighbors import Edges, Pairs, edges_among, find_pairs, search_radius
from ramify.inference.screen import closest_pairs
from ramify.structures import Structures


@dataclass(frozen=True, slots=True)
class _Search:
    structure: Structures
    pairs: Pairs


class SkinNeighbors:
    """Edges of one structure as it moves; equal to those that `find_edges` finds.

    Args:
        cutoff: Å.
        max_neighbors: per atom.
        skin: Å; a thicker one is searched for less often, and leaves more pairs to look at in between.

    Attributes:
        searches: how many times pairs were searched.
    """

    def __init__(self, cutoff: float, max_neighbors: int | None, skin: float) -> None:
        self._cutoff, self._max_neighbors, self._skin = cutoff, max_neighbors, skin
        self._radius = search_radius(cutoff, max_neighbors)
        self._last: _Search | None = None
        self.searches = 0

    def find(self, structure: Structures) -> tuple[Edges, float]:
        """The edges of one structure, and the distance of its closest two atoms in Å (inf for one atom alone)."""
        if self._last is None or not self._reusable(self._last.structure, structure):
            self._last = _Search(structure, find_pairs(structure, self._radius + self._skin))
            self.searches += 1
        pairs = _measured(structure, self._last.pairs)
        inside = pairs.distance < self._radius
        pairs = Pairs(pairs.receiver[inside], pairs.sender[inside], pairs.shift[inside], pairs.distance[inside])
        edges = edges_among(pairs, len(structure.numbers), self._cutoff, self._max_neighbors)
        return edges, float(closest_pairs(structure, pairs)[0])

    def _reusable(self, before: Structures, now: Structures) -> bool:
        """Whether no pair can have come within the radius that was beyond radius and skin before."""
        same = np.array_equal(before.numbers, now.numbers) and np.array_equal(before.pbc, now.pbc)
        if not same or not len(now.numbers):
            return False
        deformation = np.eye(3)
        if now.pbc.any() and not np.array_equal(before.cell, now.cell):
            if not now.pbc.all():  # the plane or line of the periodic axes would have to be told from the rest
                return False
            deformation = np.linalg.solve(before.cell[0], now.cell[0])
        moved = now.positions - before.positions @ deformation
        farthest = float(np.linalg.norm(moved - moved.mean(axis=0), axis=1).max())
        smallest = float(np.linalg.svd(deformation, compute_uv=False)[-1])
        return smallest * (self._radius + self._skin) - 2 * farthest >= self._radius


def _measured(structure: Structures, pairs: Pairs) -> Pairs:
    """The same pairs at the distances that they have now."""
    vector = structure.positions[pairs.sender] - structure.positions[pairs.receiver] + pairs.shift @ structure.cell[0]
    return replace(pairs, distance=np.linalg.norm(vector, axis=1))
