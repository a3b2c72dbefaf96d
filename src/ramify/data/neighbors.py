"""Neighbour lists, made on the fly so that the cutoff stays a hyper-parameter.

An edge (i, j, n) says that atom j, moved by n lattice vectors, lies within the cutoff of atom i. Small structures without
periodicity go through one vectorised all-pairs pass over the whole batch; all others through vesin's cell lists
(https://github.com/Luthaf/vesin), structure by structure.

`max_neighbors` keeps the nearest. A hard limit would make the energy jump when two atoms swap ranks, so the first
neighbour left out is kept as one more edge, the *horizon*: the encoder lets every weight of that atom fade to zero there.
Which of several equally distant atoms comes last is then of no consequence: all of them weigh nothing.
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


@dataclass(frozen=True, slots=True)
class Edges:
    """E edges over N atoms, sorted by receiver, then by distance.

    Attributes:
        receiver: (E,) int64, atom i that is surrounded.
        sender: (E,) int64, atom j.
        shift: (E, 3) int32, lattice vectors added to the sender.
        horizon: (N,) int64, the edge that bounds the atom's neighbourhood, -1 where the cutoff itself does.
    """

    receiver: NDArray[np.int64]
    sender: NDArray[np.int64]
    shift: NDArray[np.int32]
    horizon: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.receiver)


def find_edges(structures: Structures, cutoff: float, max_neighbors: int | None = None) -> Edges:
    """All edges of all structures.

    Args:
        structures: any number of structures.
        cutoff: Å, for atom pairs strictly closer than this.
        max_neighbors: the nearest this many per atom, plus one edge for the horizon; None keeps all.

    Returns:
        edges numbered within `structures` as a whole.
    """
    simple = ~structures.pbc.any(axis=1) & (structures.n_atoms <= ALL_PAIRS_ATOMS)
    parts = [_all_pairs(structures, chosen, cutoff) for chosen in _spans(structures.n_atoms, np.flatnonzero(simple))]
    parts += [_cell_list(structures, int(s), cutoff) for s in np.flatnonzero(~simple)]
    receiver = np.concatenate([p[0] for p in parts]) if parts else np.zeros(0, np.int64)
    sender = np.concatenate([p[1] for p in parts]) if parts else np.zeros(0, np.int64)
    shift = np.concatenate([p[2] for p in parts]) if parts else np.zeros((0, 3), np.int32)
    distance = np.concatenate([p[3] for p in parts]) if parts else np.zeros(0)
    return _nearest(len(structures.numbers), receiver, sender, shift, distance, max_neighbors)


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


def _nearest(
    n_atoms: int,
    receiver: NDArray[np.int64],
    sender: NDArray[np.int64],
    shift: NDArray[np.int32],
    distance: NDArray[np.float64],
    max_neighbors: int | None,
) -> Edges:
    """Sorts by receiver and distance and cuts each neighbourhood one edge past `max_neighbors`."""
    order = np.lexsort((distance, receiver))
    count = np.bincount(receiver, minlength=n_atoms)
    horizon = np.full(n_atoms, -1, np.int64)
    if max_neighbors is not None:
        ranked = receiver[order]
        rank = np.arange(len(order)) - (np.cumsum(count) - count)[ranked]
        order = order[rank <= max_neighbors]
        kept = np.minimum(count, max_neighbors + 1)
        cut = count > max_neighbors
        horizon[cut] = (np.cumsum(kept) - 1)[cut]
    return Edges(receiver[order], sender[order], shift[order], horizon)
