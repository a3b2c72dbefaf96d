"""Neighbours that are found once and used again while atoms move little.

Pairs are searched with a radius that is larger than needed by a skin. Let R be the radius needed, x0 the positions and
A0 the cell when pairs were searched, x and A those of now, and F the deformation that takes A0 to A. What F and a
common shift do not explain is u = x - x0 F - mean(x - x0 F). A pair that was farther apart than R + skin is now farther
apart than s (R + skin) - 2 max|u|, s the smallest singular value of F: as long as that is at least R, none is missed.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ramify.inference.screen import closest_pairs
from ramify.neighbors.all_pairs import Pairs
from ramify.neighbors.edges import Edges, edges_among, find_pairs, search_radius
from ramify.structures import Structures


@dataclass(frozen=True, slots=True)
class _Search:
    structures: Structures
    pairs: Pairs


class SkinNeighbors:
    """Edges of one or several structures as they move; equal to those that `find_edges` finds.

    Args:
        cutoff: Å.
        max_neighbors: per atom.
        skin: Å; a thicker one is searched for less often, and leaves more pairs to look at in between.
        device: kind of device that large structures are searched on.

    Attributes:
        searches: how many times pairs were searched.
    """

    def __init__(self, cutoff: float, max_neighbors: int | None, skin: float, device: str = "cpu") -> None:
        self._cutoff, self._max_neighbors, self._skin, self._device = cutoff, max_neighbors, skin, device
        self._radius = search_radius(cutoff, max_neighbors)
        self._last: _Search | None = None
        self.searches = 0

    def find(self, structures: Structures) -> tuple[Edges, NDArray[np.float64]]:
        """The edges of structures of at least one atom, and (S,) Å, the closest two atoms of each (inf for one)."""
        if self._last is None or not self._reusable(self._last.structures, structures):
            self._last = _Search(structures, find_pairs(structures, self._radius + self._skin, device=self._device))
            self.searches += 1
        pairs = _measured(structures, self._last.pairs)
        inside = pairs.distance < self._radius
        pairs = Pairs(pairs.receiver[inside], pairs.sender[inside], pairs.shift[inside], pairs.distance[inside])
        edges = edges_among(pairs, len(structures.numbers), self._cutoff, self._max_neighbors)
        return edges, closest_pairs(structures, pairs)

    def _reusable(self, before: Structures, now: Structures) -> bool:
        """Whether no pair can have come within the radius that was beyond radius and skin before."""
        same = ("n_atoms", "numbers", "pbc")
        if not all(np.array_equal(getattr(before, name), getattr(now, name)) for name in same):
            return False
        deformation = np.tile(np.eye(3), (len(now), 1, 1))
        periodic = now.pbc.any(axis=1)
        deformed = periodic & (before.cell != now.cell).any(axis=(1, 2))
        if not now.pbc[deformed].all():  # the plane or line of the periodic axes would have to be told from the rest
            return False
        deformation[deformed] = np.linalg.solve(before.cell[deformed], now.cell[deformed])
        of_atom, first = now.structure_of_atom, now.offsets[:-1]
        moved = now.positions - np.einsum("nk,nkc->nc", before.positions, deformation[of_atom])
        moved -= (np.add.reduceat(moved, first) / now.n_atoms[:, None])[of_atom]
        farthest = np.maximum.reduceat(np.linalg.norm(moved, axis=1), first)
        smallest = np.linalg.svd(deformation, compute_uv=False)[:, -1]
        return bool((smallest * (self._radius + self._skin) - 2 * farthest >= self._radius).all())


def _measured(structures: Structures, pairs: Pairs) -> Pairs:
    """The same pairs at the distances that they have now."""
    cell = structures.cell[structures.structure_of_atom[pairs.receiver]]
    vector = structures.positions[pairs.sender] - structures.positions[pairs.receiver]
    vector += np.einsum("pk,pkc->pc", pairs.shift, cell)
    return replace(pairs, distance=np.linalg.norm(vector, axis=1))
