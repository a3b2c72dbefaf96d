"""A dense neighbour table (N, n) of edges, with which sums over neighbours are batched matrix products."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.model.graph import Graph


@dataclass(frozen=True, slots=True)
class NeighborTable:
    """N atoms with n slots each; slots without a neighbour contain atom 0 with values 0, and contribute nothing.

    Attributes:
        atoms, slots: N and n.
        neighbor: (N n,) the atom in each slot.
        row: (E,) the slot of each edge among N n + 1, of which the last is discarded: it takes the padding edges of
            padded batches, with weight 0, for which there may be no slots.
    """

    atoms: int
    slots: int
    neighbor: Tensor
    row: Tensor

    @classmethod
    def of(cls, graph: Graph) -> "NeighborTable":
        """From edges sorted by receiver. Reads no value from the device: n is the length of `graph.slots`."""
        i, n_atoms, n = graph.receiver, graph.numbers.shape[0], graph.slots.shape[0]
        count = torch.zeros_like(graph.numbers).index_add(0, i, torch.ones_like(i))
        first = count.cumsum(0) - count
        slot = torch.arange(i.shape[0], device=i.device) - first.index_select(0, i)
        row = torch.where(slot < n, i * n + slot, n_atoms * n)
        neighbor = i.new_zeros(n_atoms * n + 1).index_copy(0, row, graph.sender)
        return cls(n_atoms, n, neighbor[: n_atoms * n], row)

    def spread(self, values: Tensor) -> Tensor:
        """(E, k) of edges -> (N, n, k), zero in slots without a neighbour."""
        rows, k = self.atoms * self.slots, values.shape[1]
        return values.new_zeros(rows + 1, k).index_copy(0, self.row, values)[:rows].view(self.atoms, self.slots, k)
