"""Neighbour lists, made on the fly so that the cutoff stays a hyper-parameter.

An edge (i, j, n) says that atom j, moved by n lattice vectors, lies within the cutoff of atom i. Small structures
without periodicity go through one vectorised all-pairs pass over the whole batch; all others through vesin's cell lists
(https://github.com/Luthaf/vesin), structure by structure.

`max_neighbors` keeps the nearest. A plain limit would make the energy jump when two atoms trade ranks, and would choose
among equally distant atoms of a crystal by chance. Instead every atom gets a *reach* of its own, at most the cutoff, at
which the encoder lets all weights fade to zero: the radius at which a smoothed count of neighbours comes to
`max_neighbors` + 1/2. An atom at distance d begins to count when the radius r comes within `SOFTNESS` of it and counts
fully at r = d, so at most `max_neighbors` atoms lie inside; the reach moves smoothly with all atoms near it, treats
equal distances equally, and is differentiated with everything else.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from vesin import NeighborList

from ramify.structures import Structures

ALL_PAIRS_ATOMS = 100
"""Largest structure that goes through the all-pairs pass (n² pairs: beyond this a cell list is faster)."""

PAIRS_AT_ONCE = 4_000_000
"""Pairs the all-pairs pass holds at a time (about 200 MB)."""


SOFTNESS = 0.25
"""Å before its own distance over which an atom comes to count. Smaller keeps more of the neighbourhood, larger makes
the reach follow its atoms more gently."""

ROUNDING = 0.2
"""Å around the cutoff within which the minimum of reach and cutoff is rounded off."""


@dataclass(frozen=True, slots=True)
class Edges:
    """E edges over N atoms, sorted by receiver, then by distance; and what each atom's reach depends on.

    Attributes:
        receiver: (E,) int64, atom i that is surrounded.
        sender: (E,) int64, atom j.
        shift: (E, 3) int32, lattice vectors added to the sender.
        reach: (N,) float64, Å, where the atom's neighbourhood ends.
        rim: the pairs whose distance moves the reach, sorted by receiver.
    """

    receiver: NDArray[np.int64]
    sender: NDArray[np.int64]
    shift: NDArray[np.int32]
    reach: NDArray[np.float64]
    rim: "Rim"

    def __len__(self) -> int:
        return len(self.receiver)


@dataclass(frozen=True, slots=True)
class Rim:
    """H pairs near the reach of their receiver.

    Attributes:
        receiver, sender, shift: as in `Edges`.
        gain: (H,) float64, derivative of the receiver's reach with respect to the pair's distance.
    """

    receiver: NDArray[np.int64]
    sender: NDArray[np.int64]
    shift: NDArray[np.int32]
    gain: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.receiver)


@dataclass(frozen=True, slots=True)
class Pairs:
    """P pairs of atoms within some radius, in no order.

    Attributes:
        receiver, sender, shift: as in `Edges`.
        distance: (P,) float64, Å.
    """

    receiver: NDArray[np.int64]
    sender: NDArray[np.int64]
    shift: NDArray[np.int32]
    distance: NDArray[np.float64]


def find_edges(structures: Structures, cutoff: float, max_neighbors: int | None = None) -> Edges:
    """All edges of all structures.

    Args:
        structures: any number of structures.
        cutoff: Å, for atom pairs strictly closer than this.
        max_neighbors: the most that an atom may have; None keeps all within the cutoff.

    Returns:
        edges numbered within `structures` as a whole.
    """
    pairs = find_pairs(structures, search_radius(cutoff, max_neighbors))
    return edges_among(pairs, len(structures.numbers), cutoff, max_neighbors)


def search_radius(cutoff: float, max_neighbors: int | None) -> float:
    """Å: pairs up to here decide what the edges are; beyond the cutoff they still move reaches."""
    return cutoff if max_neighbors is None else cutoff + ROUNDING + SOFTNESS


def find_pairs(structures: Structures, radius: float) -> Pairs:
    """All pairs of atoms of one structure strictly closer than `radius` (Å), images included."""
    simple = ~structures.pbc.any(axis=1) & (structures.n_atoms <= ALL_PAIRS_ATOMS)
    parts = [_all_pairs(structures, chosen, radius) for chosen in _spans(structures.n_atoms, np.flatnonzero(simple))]
    parts += [_cell_list(structures, int(s), radius) for s in np.flatnonzero(~simple)]
    if not parts:
        parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.int32), np.zeros(0))]
    receiver, sender, shift, distance = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Pairs(receiver, sender, shift, distance)


def edges_among(pairs: Pairs, n_atoms: int, cutoff: float, max_neighbors: int | None) -> Edges:
    """The edges among all pairs of `n_atoms` atoms within `search_radius` of each other."""
    order = np.lexsort((pairs.distance, pairs.receiver))
    receiver, sender, shift = pairs.receiver[order], pairs.sender[order], pairs.shift[order]
    distance = pairs.distance[order]
    reach, gain = np.full(n_atoms, cutoff), np.zeros(len(receiver))
    if max_neighbors is not None:
        reach, gain = _reach(n_atoms, receiver, distance, cutoff, max_neighbors)
    inside, near = distance < reach[receiver], gain > 0
    return Edges(
        receiver[inside],
        sender[inside],
        shift[inside],
        reach,
        Rim(receiver[near], sender[near], shift[near], gain[near]),
    )


_Found = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32], NDArray[np.float64]]
"""receiver, sender, shift, distance."""


def _spans(n_atoms: NDArray[np.int64], chosen: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Cuts the chosen structures into runs of at most `PAIRS_AT_ONCE` pairs."""
    if not len(chosen):
        return []
    span = np.cumsum(n_atoms[chosen] ** 2) // PAIRS_AT_ONCE
    return np.split(chosen, np.flatnonzero(np.diff(span)) + 1)


def _all_pairs(structures: Structures, chosen: NDArray[np.int64], cutoff: float) -> _Found:
    """Every pair of every chosen structure in one pass; none of them is periodic."""
    counts = structures.n_atoms[chosen]
    starts = structures.offsets[chosen]
    # receivers: each atom repeated once per atom of its structure; senders: that structure's atoms, counted up again
    per_atom = np.repeat(counts, counts)
    atom = np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(len(per_atom))
    receiver = np.repeat(atom, per_atom)
    first_pair = np.cumsum(per_atom) - per_atom
    sender = np.repeat(np.repeat(starts, counts) - first_pair, per_atom) + np.arange(len(receiver))
    difference = structures.positions[sender].astype(np.float64) - structures.positions[receiver]
    square = np.einsum("ij,ij->i", difference, difference)
    keep = (square < cutoff * cutoff) & (receiver != sender)
    receiver, sender, distance = receiver[keep], sender[keep], np.sqrt(square[keep])
    return receiver, sender, np.zeros((len(receiver), 3), np.int32), distance


def _cell_list(structures: Structures, index: int, cutoff: float) -> _Found:
    """The edges of one structure by vesin; exact for skewed cells and cells smaller than the cutoff."""
    first, last = structures.offsets[index : index + 2]
    periodic = structures.pbc[index]
    box = np.asarray(structures.cell[index], np.float64)
    receiver, sender, shift, distance = NeighborList(cutoff=cutoff, full_list=True, n_threads=1).compute(
        points=np.asarray(structures.positions[first:last], np.float64),
        box=box,
        periodic=bool(periodic.all()) if periodic.all() or not periodic.any() else periodic,
        quantities="ijSd",
    )
    inside = distance < cutoff  # vesin includes the cutoff itself
    return (
        receiver[inside].astype(np.int64) + first,
        sender[inside].astype(np.int64) + first,
        shift[inside].astype(np.int32),
        distance[inside],
    )


def _reach(
    n_atoms: int, receiver: NDArray[np.int64], distance: NDArray[np.float64], cutoff: float, max_neighbors: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N,) reach and (pairs,) its derivative with respect to each distance; pairs sorted by receiver and distance."""
    reach, gain = np.full(n_atoms, cutoff), np.zeros(len(receiver))
    count = np.bincount(receiver, minlength=n_atoms)
    crowded = np.flatnonzero(count > max_neighbors)
    if not len(crowded):
        return reach, gain
    # the count passes max_neighbors + 1/2 between d - SOFTNESS and d, d the first distance beyond the limit
    first_out = np.full(n_atoms, np.inf)
    first_out[crowded] = distance[(np.cumsum(count) - count)[crowded] + max_neighbors]
    near = np.flatnonzero(np.abs(distance - first_out[receiver]) < SOFTNESS)
    owner, d = receiver[near], distance[near]
    surely_inside = np.bincount(receiver[distance <= first_out[receiver] - SOFTNESS], minlength=n_atoms)
    low, high = first_out - SOFTNESS, first_out.copy()
    for _ in range(48):  # halves 0.25 Å down to 1e-15 Å
        middle = 0.5 * (low + high)
        counted = surely_inside + np.bincount(owner, _step(middle[owner], d), minlength=n_atoms)
        too_few = counted < max_neighbors + 0.5
        low, high = np.where(too_few, middle, low), np.where(too_few, high, middle)
    free = 0.5 * (low + high)
    slope = _step_slope(free[owner], d)
    total = np.bincount(owner, slope, minlength=n_atoms)
    # smooth minimum with the cutoff: (a + b)/2 - (h² + (a - b)²)/(4 h) where |a - b| < h (I. Quilez, polynomial smin)
    beyond = np.clip(free - cutoff, -ROUNDING, ROUNDING)
    rounded = cutoff + 0.5 * beyond - (ROUNDING**2 + beyond**2) / (4 * ROUNDING)
    reach = np.where(free < cutoff - ROUNDING, free, rounded)
    reach[free >= cutoff + ROUNDING] = cutoff  # exactly: what else is in the batch must not change a bit
    gain[near] = slope / total[owner] * (0.5 - beyond / (2 * ROUNDING))[owner]
    return reach, gain


def _step(radius: NDArray[np.float64], distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far an atom counts: 0 at radius <= distance - SOFTNESS, 1 at radius >= distance, twice differentiable
    (6 t⁵ - 15 t⁴ + 10 t³)."""
    t = np.clip((radius - distance) / SOFTNESS + 1.0, 0.0, 1.0)
    return t**3 * (t * (6.0 * t - 15.0) + 10.0)


def _step_slope(radius: NDArray[np.float64], distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Derivative of `_step` with respect to t, which the ratio of gains needs only up to a factor."""
    t = np.clip((radius - distance) / SOFTNESS + 1.0, 0.0, 1.0)
    return 30.0 * (t * (1.0 - t)) ** 2
