"""The geometry an encoder works on: edge directions, distances and weights, differentiable in positions and strain."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.data.batch import Batch
from ramify.model.radial import envelope


@dataclass(frozen=True, slots=True)
class Graph:
    """N atoms and E edges, sorted by receiver.

    Attributes:
        numbers: (N,) atomic numbers.
        receiver, sender: (E,).
        direction: (E, 3) unit vectors from receiver to sender.
        distance: (E,) Å.
        weight: (E,) from 1 at short range to 0 at the end of the receiver's neighbourhood.
    """

    numbers: Tensor
    receiver: Tensor
    sender: Tensor
    direction: Tensor
    distance: Tensor
    weight: Tensor


def build_graph(batch: Batch, cutoff: float, positions: Tensor, strain: Tensor | None = None) -> Graph:
    """Edge geometry of a batch.

    Args:
        batch: gives edges and periodic shifts.
        cutoff: Å.
        positions: (N, 3) Å, the tensor to differentiate for forces.
        strain: (S, 3, 3), symmetric, applied to every edge vector as r (1 + ε): the tensor to differentiate for stress.

    An atom with more neighbours than `max_neighbors` ends its neighbourhood at its horizon, the nearest neighbour left
    out; the end moves with that neighbour, so energies stay continuous and conservative forces exact.
    """
    vector = positions.index_select(0, batch.sender) - positions.index_select(0, batch.receiver) + batch.shift
    if strain is not None:
        edge_strain = strain.index_select(0, batch.structure.index_select(0, batch.receiver))
        vector = vector + torch.einsum("ec,ecd->ed", vector, edge_strain)
    distance = torch.linalg.vector_norm(vector, dim=1)
    if len(distance):
        at_horizon = distance.index_select(0, batch.horizon.clamp(min=0))
        reach = torch.where(batch.horizon >= 0, at_horizon, torch.full_like(at_horizon, cutoff))
        weight = envelope(distance / reach.index_select(0, batch.receiver))
    else:
        weight = distance
    return Graph(batch.numbers, batch.receiver, batch.sender, vector / distance[:, None], distance, weight)
