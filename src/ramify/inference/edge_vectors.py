"""Edges as vectors that are subtracted in float64, so that a model in float32 does not see where a structure lies."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ramify.batches.batch import Batch
from ramify.neighbors.edges import CutoffPairs, Edges
from ramify.structures import Structures


def with_edge_vectors(batch: Batch, structures: Structures, edges: Edges) -> Batch:
    """The batch with every atom at the origin and what lies between two atoms in the shift of their edge.

    A model reads positions only as x_j + shift - x_i, and differentiates that: energies, forces and stress stay what
    they are. But at 10,000 Å two positions in float32 are each off by up to 5e-4 Å, and so is a shift by 2,000 cells;
    their difference in float64, cast afterwards, is exact to 1e-7 of an edge.

    Args:
        batch: made of `structures` and `edges`.
        structures: with positions and cells in any precision.
        edges: numbered within `structures`.
    """

    positions, cells = structures.positions.astype(np.float64), structures.cell.astype(np.float64)

    def vectors(pairs: Edges | CutoffPairs) -> Tensor:
        found = positions[pairs.sender] - positions[pairs.receiver]
        if pairs.shift.any():
            found += np.einsum("ek,ekc->ec", pairs.shift, cells[structures.structure_of_atom[pairs.receiver]])
        return torch.from_numpy(found).to(batch.shift.dtype)

    origin = torch.zeros_like(batch.positions)
    return replace(batch, positions=origin, shift=vectors(edges), cutoff_shift=vectors(edges.cutoff_pairs))
