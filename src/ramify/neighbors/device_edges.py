"""Edges of a batch found on its device by PyTorch: those of `ramify.neighbors.edges`, within rounding.

Edges are equal except for pairs whose distance equals a cutoff within rounding, which have no weight; adaptive cutoffs
and their derivatives are equal to about 1e-12 Å.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.neighbors.device_pairs import TensorPairs, pairs_within
from ramify.neighbors.edges import CONVERGED, ROUNDING, SOFTNESS, search_radius


@dataclass(frozen=True, slots=True)
class TensorEdges:
    """Edges over N atoms on a device.

    Attributes:
        pairs: the edges.
        atom_cutoff: (N,) float64, Å, adaptive cutoff of each atom.
        cutoff_pairs: the pairs whose distances determine the adaptive cutoffs.
        gain: (H,) float64, derivatives of the adaptive cutoffs with respect to the distances of the latter.
    """

    pairs: TensorPairs
    atom_cutoff: Tensor
    cutoff_pairs: TensorPairs
    gain: Tensor


def find_edges_on_device(
    positions: Tensor, structure: Tensor, cell: Tensor, periodic: Tensor, cutoff: float, max_neighbors: int | None
) -> TensorEdges:
    """Finds all edges of all structures.

    Args:
        positions, structure, cell, periodic: see `pairs_within`.
        cutoff: Å; edges are strictly shorter.
        max_neighbors: maximum number of neighbours of an atom; None keeps all within the cutoff.
    """
    pairs = pairs_within(positions, structure, cell, periodic, search_radius(cutoff, max_neighbors))
    atom_cutoff = torch.full_like(positions[:, 0], cutoff)
    nothing = torch.zeros(0, dtype=torch.int64, device=positions.device)
    if max_neighbors is None:
        return TensorEdges(pairs, atom_cutoff, pairs.chosen(nothing), positions.new_zeros(0))
    count = torch.bincount(pairs.receiver, minlength=len(positions))
    crowded = torch.nonzero(count > max_neighbors)[:, 0]
    near, gain = nothing, positions.new_zeros(0)
    if len(crowded):
        number = torch.full_like(count, -1).index_copy(0, crowded, torch.arange(len(crowded), device=count.device))
        owner = number[pairs.receiver]
        own = torch.nonzero(owner >= 0)[:, 0]
        limited, near, gain = _adaptive_cutoffs(count[crowded], owner[own], pairs.distance[own], cutoff, max_neighbors)
        atom_cutoff, near = atom_cutoff.index_copy(0, crowded, limited), own[near]
    inside = torch.nonzero(pairs.distance < atom_cutoff[pairs.receiver])[:, 0]
    return TensorEdges(pairs.chosen(inside), atom_cutoff, pairs.chosen(near), gain)


def _adaptive_cutoffs(
    count: Tensor, owner: Tensor, distance: Tensor, cutoff: float, max_neighbors: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(A,) adaptive cutoffs of A atoms with more than `max_neighbors` pairs; the pairs that determine them, and the
    derivatives with respect to their distances.

    Args:
        count: (A,) number of pairs of each atom.
        owner, distance: (pairs,) sorted by owner, the index of the atom.
        cutoff, max_neighbors: see `find_edges_on_device`.
    """
    beyond = _ranked(count, owner, distance, max_neighbors)
    behind = beyond[owner] - distance  # distance from the first neighbour beyond the limit
    near = torch.nonzero(behind.abs() < SOFTNESS)[:, 0]
    inside = _sums((behind >= SOFTNESS).to(distance.dtype), count)
    owner, distance = owner[near], distance[near]
    of_atom = torch.bincount(owner, minlength=len(count))
    free = _where_count_passes(max_neighbors + 0.5 - inside, owner, distance, of_atom, beyond)
    _, slope = _step(free[owner], distance)
    over = (free - cutoff).clamp(-ROUNDING, ROUNDING)  # the smooth minimum of `ramify.neighbors.edges`
    limited = cutoff + 0.5 * over - (ROUNDING**2 + over**2) / (4 * ROUNDING)
    limited = torch.where(free < cutoff - ROUNDING, free, limited)
    limited = torch.where(free >= cutoff + ROUNDING, cutoff, limited)
    gain = slope / _sums(slope, of_atom)[owner] * (0.5 - over / (2 * ROUNDING))[owner]
    moving = torch.nonzero(gain > 0)[:, 0]
    return limited, near[moving], gain[moving]


def _ranked(count: Tensor, owner: Tensor, distance: Tensor, rank: int) -> Tensor:
    """Distance with rank `rank` (from 0) among the pairs of each atom."""
    order = torch.argsort(distance)
    order = order[torch.argsort(owner[order], stable=True)]
    return distance[order[count.cumsum(0) - count + rank]]


def _where_count_passes(target: Tensor, owner: Tensor, distance: Tensor, of_atom: Tensor, beyond: Tensor) -> Tensor:
    """(A,) Å, radius at which the smoothed count of the pairs `owner`, `distance` equals `target`, by Newton's method
    and bisection as in `ramify.neighbors.edges`."""
    low, high = beyond - SOFTNESS, beyond
    radius = 0.5 * (low + high)
    active = torch.ones_like(radius, dtype=torch.bool)
    for _ in range(100):  # bisection alone needs 40
        steps, slopes = _step(radius[owner], distance)
        excess = _sums(steps, of_atom) - target
        low, high = torch.where(excess < 0, radius, low), torch.where(excess < 0, high, radius)
        there = radius - excess * SOFTNESS / _sums(slopes, of_atom)
        there = torch.where((there >= low) & (there <= high), there, 0.5 * (low + high))
        moved = (there - radius).abs() > CONVERGED
        radius = torch.where(active, there, radius)
        active = active & moved
        if not active.any():
            break
    return radius


def _sums(values: Tensor, counts: Tensor) -> Tensor:
    """Sums of consecutive values, so many for each atom; in a fixed order also on a GPU."""
    return torch.segment_reduce(values, "sum", lengths=counts, unsafe=True)


def _step(radius: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
    """Contribution of an atom to the count and its derivative, see `ramify.neighbors.edges`."""
    t = ((radius - distance) / SOFTNESS + 1.0).clamp(0.0, 1.0)
    u = t * (1.0 - t)
    return t * t * t * (t * (6.0 * t - 15.0) + 10.0), 30.0 * u * u
