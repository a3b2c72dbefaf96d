"""Batches within a memory budget: consecutive structures, up to the allowed numbers of atoms and edges."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ramify.neighbors.edges import CutoffPairs, Edges
from ramify.packing import filled


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """Limits of one batch; a single larger structure forms a batch of its own.

    Attributes:
        atoms, edges: largest numbers.
        memory: bytes that the computation of one batch may take.
    """

    atoms: int
    edges: int
    memory: float


def plan(n_atoms: NDArray[np.int64], n_edges: NDArray[np.int64], budget: MemoryBudget) -> Iterator[slice]:
    """Divides a sequence of structures into batches of consecutive structures within the budget."""
    return filled((n_atoms, n_edges), (budget.atoms, budget.edges))


def edges_of_span(edges: Edges, first: int, last: int) -> Edges:
    """The edges of the atoms `first` to `last`, numbered from `first`; no edge connects them to other atoms."""
    a, b = np.searchsorted(edges.receiver, (first, last))
    c, d = np.searchsorted(edges.cutoff_pairs.receiver, (first, last))
    cutoff_pairs = edges.cutoff_pairs
    return Edges(
        edges.receiver[a:b] - first,
        edges.sender[a:b] - first,
        edges.shift[a:b],
        edges.atom_cutoff[first:last],
        CutoffPairs(
            cutoff_pairs.receiver[c:d] - first,
            cutoff_pairs.sender[c:d] - first,
            cutoff_pairs.shift[c:d],
            cutoff_pairs.gain[c:d],
        ),
    )
