"""Edge vectors computed in float64, so that float32 predictions do not depend on the position of a structure."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ramify.batches.batch import Batch
from ramify.neighbors.edges import CutoffPairs, Edges
from ramify.structures import Structures


def with_edge_vectors(batch: Batch, structures: Structures, edges: Edges) -> Batch:
    """The batch with every atom at the origin and the vector between two atoms in the shift of their edge.

    A model uses positions only as x_j + shift - x_i and differentiates this expression: energies, forces and stress do
    not change. At 10,000 Å, the float32 rounding error of a position is up to 5e-4 Å, and so is that of a shift by
    2,000 cells; their difference in float64, cast afterwards, has a relative error of 1e-7.

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
