"""Neighbour lists, computed on the fly so that the cutoff stays a hyper-parameter.

An edge (i, j, n) means that atom j, translated by n lattice vectors, is within the cutoff of atom i. Small structures
are searched in vectorised passes over the whole batch (`ramify.neighbors.all_pairs`), large ones individually by cell
lists (`ramify.neighbors.cell_lists`). The choice depends only on the structure, and so do its edges, bitwise and in
their order.

`max_neighbors` keeps the nearest neighbours. A hard limit would make the energy discontinuous when two atoms exchange
ranks, and would select arbitrarily among equidistant atoms of a crystal. Instead every atom has an *adaptive cutoff*
(`atom_cutoff`), at most the cutoff, at which the encoder lets all weights go to zero: the radius at which a smoothed
count of neighbours equals `max_neighbors` + 1/2. The contribution of an atom at distance d to the count rises from 0 at
radius d - `SOFTNESS` to 1 at radius d, so that at most `max_neighbors` atoms are inside; the adaptive cutoff is a
smooth function of the positions of all atoms near it, treats equal distances equally, and is differentiated in forces.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ramify.neighbors.all_pairs import CANDIDATES_OF_ONE, Pairs, all_pairs, images_within, merged, together
from ramify.neighbors.cell_lists import cell_list_for
from ramify.structures import Structures

SOFTNESS = 0.25
"""Å, interval of the radius over which the contribution of an atom to the count rises. Smaller values keep more
neighbours, larger ones make the adaptive cutoff smoother."""

ROUNDING = 0.2
"""Å around the cutoff within which the minimum of adaptive cutoff and cutoff is smoothed."""

CONVERGED = 1e-10
"""Å, last step of the search for an adaptive cutoff. Newton's method squares the error: the remainder is rounding."""

RANKED_AT_ONCE = 1 << 20
"""Maximum number of distances ranked in one table."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Edges:
    """E edges over N atoms, sorted by receiver, with the adaptive cutoffs.

    Attributes:
        receiver: (E,) int64, central atom i.
        sender: (E,) int64, neighbour j.
        shift: (E, 3) int32, lattice vectors added to the sender.
        atom_cutoff: (N,) float64, Å, adaptive cutoff of each atom.
        cutoff_pairs: the pairs whose distances determine the adaptive cutoffs, sorted by receiver.
    """

    receiver: NDArray[np.int64]
    sender: NDArray[np.int64]
    shift: NDArray[np.int32]
    atom_cutoff: NDArray[np.float64]
    cutoff_pairs: "CutoffPairs"

    def __len__(self) -> int:
        return len(self.receiver)


@dataclass(frozen=True, slots=True)
class CutoffPairs:
    """H pairs near the adaptive cutoff of their receiver.

    Attributes:
        receiver, sender, shift: as in `Edges`.
        gain: (H,) float64, derivative of the adaptive cutoff of the receiver with respect to the distance of the pair.
    """

    receiver: NDArray[np.int64]
    sender: NDArray[np.int64]
    shift: NDArray[np.int32]
    gain: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.receiver)


_NOTHING = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.int32)

NO_EDGES = Edges(*_NOTHING, np.zeros(0), CutoffPairs(*_NOTHING, np.zeros(0)))
"""No edges over no atoms."""


def find_edges(structures: Structures, cutoff: float, max_neighbors: int | None = None) -> Edges:
    """Finds all edges of all structures.

    Args:
        structures: any number of structures.
        cutoff: Å; edges are strictly shorter.
        max_neighbors: maximum number of neighbours of an atom; None keeps all within the cutoff.

    Returns:
        edges with atom indices within `structures`.
    """
    pairs = find_pairs(structures, search_radius(cutoff, max_neighbors), distances=max_neighbors is not None)
    return edges_among(pairs, len(structures.numbers), cutoff, max_neighbors)


def search_radius(cutoff: float, max_neighbors: int | None) -> float:
    """Radius in Å of the pairs that determine the edges; pairs beyond the cutoff influence adaptive cutoffs."""
    return cutoff if max_neighbors is None else cutoff + ROUNDING + SOFTNESS


def find_pairs(structures: Structures, radius: float, *, distances: bool = True, device: str = "cpu") -> Pairs:
    """Finds all pairs of atoms within each structure strictly closer than `radius` (Å), images included; without
    `distances`, distances may be NaN. Large structures are searched on `device`, see `cell_list_for`."""
    images = images_within(structures, radius)
    small = images.candidates <= CANDIDATES_OF_ONE
    found = list(all_pairs(structures, images, np.flatnonzero(small), radius, distances=distances))
    if not small.all():
        found += [_cell_list(structures, int(s), radius, device) for s in np.flatnonzero(~small)]
        return merged(found, 0, len(structures.numbers))
    return found[0] if len(found) == 1 else together(found)


def edges_among(pairs: Pairs, n_atoms: int, cutoff: float, max_neighbors: int | None) -> Edges:
    """Selects edges from all pairs of `n_atoms` atoms within `search_radius`."""
    if max_neighbors is None:
        atom_cutoff = np.full(n_atoms, cutoff)
        return Edges(pairs.receiver, pairs.sender, pairs.shift, atom_cutoff, NO_EDGES.cutoff_pairs)
    receiver, sender, shift, distance = pairs.receiver, pairs.sender, pairs.shift, pairs.distance
    count = np.bincount(receiver, minlength=n_atoms)
    atom_cutoff, near, gain = _adaptive_cutoffs(count, receiver, distance, cutoff, max_neighbors)
    inside = np.flatnonzero(distance < np.repeat(atom_cutoff, count))
    return Edges(
        np.take(receiver, inside),
        np.take(sender, inside),
        np.take(shift, inside, axis=0),
        atom_cutoff,
        CutoffPairs(receiver[near], sender[near], shift[near], gain),
    )


def _cell_list(structures: Structures, index: int, radius: float, device: str) -> Pairs:
    """Finds the pairs of one structure by a cell list."""
    first, last = structures.offsets[index : index + 2]
    receiver, sender, shift, distance = cell_list_for(device)(
        np.asarray(structures.positions[first:last], np.float64),
        np.asarray(structures.cell[index], np.float64),
        structures.pbc[index],
        radius,
    )
    inside = np.flatnonzero(distance < radius)  # the libraries include the radius itself
    order = inside[np.lexsort((*shift[inside].T, sender[inside], receiver[inside]))]
    return Pairs(
        receiver[order].astype(np.int64) + first,
        sender[order].astype(np.int64) + first,
        shift[order].astype(np.int32),
        distance[order],
    )


def _adaptive_cutoffs(
    count: NDArray[np.int64], receiver: NDArray[np.int64], distance: Floats, cutoff: float, max_neighbors: int
) -> tuple[Floats, NDArray[np.int64], Floats]:
    """(N,) adaptive cutoffs; the pairs that determine them, and the derivatives with respect to their distances.

    Args:
        count: (N,) number of pairs of each atom.
        receiver, distance: (pairs,) sorted by receiver.
        cutoff, max_neighbors: see `find_edges`.
    """
    atom_cutoff = np.full(len(count), cutoff)
    crowded = np.flatnonzero(count > max_neighbors)
    if not len(crowded):
        return atom_cutoff, np.zeros(0, np.int64), np.zeros(0)
    # the count passes max_neighbors + 1/2 between d - SOFTNESS and d, d the first distance beyond the limit
    beyond = np.full(len(count), np.inf)
    first = np.cumsum(count) - count
    beyond[crowded] = _ranked(distance, first[crowded], count[crowded], max_neighbors)
    behind = np.repeat(beyond, count)
    behind -= distance  # distance from the first neighbour beyond the limit
    near = np.flatnonzero(np.abs(behind) < SOFTNESS)
    number = np.zeros(len(count), np.int64)
    number[crowded] = np.arange(len(crowded))
    owner, d = number[receiver[near]], distance[near]
    inside = np.bincount(receiver[np.flatnonzero((behind >= SOFTNESS) & (behind < np.inf))], minlength=len(count))
    target = (max_neighbors + 0.5 - inside[crowded]).astype(np.float64)
    free = _where_count_passes(target, owner, d, beyond[crowded])
    _, slope = _step(free[owner], d)
    total = np.bincount(owner, slope, minlength=len(crowded))
    # smooth minimum with the cutoff: (a + b)/2 - (h² + (a - b)²)/(4 h) where |a - b| < h (I. Quilez, polynomial smin)
    over = np.clip(free - cutoff, -ROUNDING, ROUNDING)
    rounded = cutoff + 0.5 * over - (ROUNDING**2 + over**2) / (4 * ROUNDING)
    limited = np.where(free < cutoff - ROUNDING, free, rounded)
    limited[free >= cutoff + ROUNDING] = cutoff  # exactly, so that the result does not depend on the batch
    atom_cutoff[crowded] = limited
    gain = slope / total[owner] * (0.5 - over / (2 * ROUNDING))[owner]
    moving = np.flatnonzero(gain > 0)
    return atom_cutoff, near[moving], gain[moving]


def _ranked(distance: Floats, first: NDArray[np.int64], count: NDArray[np.int64], rank: int) -> Floats:
    """Distance with rank `rank` (from 0) among the pairs of each atom, which begin at `first`."""
    found = np.empty(len(first))
    rows = max(1, RANKED_AT_ONCE // int(count.max()))
    for start in range(0, len(first), rows):
        some = slice(start, start + rows)
        width = np.arange(int(count[some].max()))
        table = np.take(distance, first[some, None] + width, mode="clip")
        table[width >= count[some, None]] = np.inf
        found[some] = np.partition(table, rank, axis=1)[:, rank]
    return found


def _where_count_passes(target: Floats, owner: NDArray[np.int64], distance: Floats, beyond: Floats) -> Floats:
    """(atoms,) Å, radius at which the smoothed count of the pairs `owner`, `distance` equals `target`.

    It is between `beyond` - SOFTNESS and `beyond`. Newton's method, with bisection if a step leaves the bracket; each
    atom stops when it has converged, so that its result does not depend on the others.
    """
    low, high = beyond - SOFTNESS, beyond.copy()
    radius = 0.5 * (low + high)
    active = np.arange(len(target))
    for _ in range(100):  # bisection alone needs 40
        here = radius[active]
        steps, slopes = _step(np.take(here, owner), distance)
        excess = np.bincount(owner, steps, minlength=len(active)) - target
        slope = np.bincount(owner, slopes, minlength=len(active)) / SOFTNESS
        low, high = np.where(excess < 0, here, low), np.where(excess < 0, high, here)
        with np.errstate(divide="ignore", invalid="ignore"):
            there = here - excess / slope
        there = np.where((there >= low) & (there <= high), there, 0.5 * (low + high))
        radius[active] = there
        goes_on = np.abs(there - here) > CONVERGED
        if not goes_on.any():
            break
        pairs = np.flatnonzero(goes_on[owner])
        owner, distance = (np.cumsum(goes_on) - 1)[owner[pairs]], distance[pairs]
        active, target, low, high = active[goes_on], target[goes_on], low[goes_on], high[goes_on]
    return radius


def _step(radius: Floats, distance: Floats) -> tuple[Floats, Floats]:
    """Contribution of an atom to the count: 0 at radius <= distance - SOFTNESS, 1 at radius >= distance, and
    6 t⁵ - 15 t⁴ + 10 t³ (twice differentiable) with t from 0 to 1 between them; and its derivative by t."""
    t = np.clip((radius - distance) / SOFTNESS + 1.0, 0.0, 1.0)
    u = t * (1.0 - t)
    return t * t * t * (t * (6.0 * t - 15.0) + 10.0), 30.0 * u * u
