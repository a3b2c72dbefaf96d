"""The input of an encoder: edge directions, distances and weights, differentiable in positions and strain."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.batches.batch import Batch
from ramify.model.radial import envelope


@dataclass(frozen=True, slots=True)
class Graph:
    """N atoms and E edges, sorted by receiver.

    Attributes:
        numbers: (N,) atomic numbers.
        receiver, sender: (E,).
        direction: (E, 3) unit vectors from receiver to sender.
        distance: (E,) Å.
        weight: (E,) from 1 at short distances to 0 at the cutoff of the receiver.
        slots: (n,) 0, 1, ... n - 1; no atom has more than n edges with a weight above 0.
        conditions: (N, C) values of the conditions of the structure of each atom; None without conditions.
        exchange: for the atoms of one domain and their neighbours in other domains, which have no edges here: replaces
            features of the latter (N, ...) by those that their own domains have computed; None without domains.
    """

    numbers: Tensor
    receiver: Tensor
    sender: Tensor
    direction: Tensor
    distance: Tensor
    weight: Tensor
    slots: Tensor
    conditions: Tensor | None = None
    exchange: Callable[[Sequence[Tensor]], list[Tensor]] | None = None


def build_graph(
    batch: Batch, cutoff: float, positions: Tensor, strain: Tensor | None = None, *, differentiated: bool | None = None
) -> Graph:
    """Edge geometry of a batch.

    Args:
        batch: contains edges and periodic shifts.
        cutoff: Å.
        positions: (N, 3) Å, the tensor to differentiate for forces.
        strain: (S, 3, 3), symmetric, applied to every edge vector as r (1 + ε): the tensor to differentiate for stress.
        differentiated: whether derivatives with respect to positions will be computed; None if `requires_grad` of the
            positions shows it, which is not the case in functions that `torch.func` transforms.

    The adaptive cutoff of an atom with many neighbours depends on their positions (`ramify.neighbors.edges`): the batch
    contains its value, and this function adds its first derivative, so that conservative forces are exact.

    Raises:
        ValueError: the edges of the batch have not been found yet (`ramify.batches.edge_search`).
    """
    if batch.cell is not None:
        raise ValueError("the batch has no edges yet")

    def vectors(receiver: Tensor, sender: Tensor, shift: Tensor) -> Tensor:
        vector = positions.index_select(0, sender) - positions.index_select(0, receiver) + shift
        if strain is not None:
            of_pair = strain.index_select(0, batch.structure.index_select(0, receiver))
            vector = vector + torch.einsum("ec,ecd->ed", vector, of_pair)
        return vector

    vector = vectors(batch.receiver, batch.sender, batch.shift)
    distance = torch.linalg.vector_norm(vector, dim=1)
    atom_cutoff = batch.atom_cutoff
    if differentiated is None:
        differentiated = positions.requires_grad
    if len(batch.cutoff_gain) and differentiated:
        cutoff_pairs = torch.linalg.vector_norm(
            vectors(batch.cutoff_receiver, batch.cutoff_sender, batch.cutoff_shift), dim=1
        )
        atom_cutoff = atom_cutoff.index_add(
            0, batch.cutoff_receiver, batch.cutoff_gain * (cutoff_pairs - cutoff_pairs.detach())
        )
    conditions = None if batch.conditions is None else batch.conditions.index_select(0, batch.structure)
    ends = batch.receiver, batch.sender
    return edge_geometry(batch.numbers, *ends, vector, distance, atom_cutoff, batch.slots, conditions)


def edge_geometry(
    numbers: Tensor,
    receiver: Tensor,
    sender: Tensor,
    vector: Tensor,
    distance: Tensor,
    atom_cutoff: Tensor,
    slots: Tensor,
    conditions: Tensor | None = None,
) -> Graph:
    """A graph from edge vectors (E, 3) and their lengths (E,), Å, the adaptive cutoffs of atoms (N,), Å, the slots of a
    neighbour table (n,), and values of conditions by atom (N, C)."""
    weight = envelope(distance / atom_cutoff.index_select(0, receiver))
    return Graph(numbers, receiver, sender, vector / distance[:, None], distance, weight, slots, conditions)
