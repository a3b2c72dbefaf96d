"""The edges of a graph in the form that the layers of PyTorch Geometric take."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.model.graph import Graph


@dataclass(frozen=True, slots=True)
class Edges:
    """E edges from neighbours to atoms.

    Attributes:
        index: (2, E) senders and receivers; the flow `source_to_target` of PyTorch Geometric.
        basis: (E, R) radial basis times the weight.
        weight: (E, 1), see `Graph`; a contribution that is not multiplied by it or by `basis` is not smooth.
        direction: (E, 3) unit vectors from receiver to sender.
    """

    index: Tensor
    basis: Tensor
    weight: Tensor
    direction: Tensor

    @classmethod
    def of(cls, graph: Graph, basis: Tensor) -> "Edges":
        """The edges of a graph, periodic images included, with a radial basis (E, R)."""
        weight = graph.weight[:, None]
        return cls(torch.stack([graph.sender, graph.receiver]), basis * weight, weight, graph.direction)

    def with_loops(self, atoms: int) -> "Edges":
        """Also an edge of weight 1, without length and direction, from each of the atoms to itself: with it, weighted
        means over neighbours are defined and smooth also for the last neighbour that leaves."""
        loops = torch.arange(atoms, device=self.index.device)
        zeros = [part.new_zeros(atoms, part.shape[1]) for part in (self.basis, self.direction)]
        return Edges(
            torch.cat([self.index, torch.stack([loops, loops])], dim=1),
            torch.cat([self.basis, zeros[0]]),
            torch.cat([self.weight, self.weight.new_ones(atoms, 1)]),
            torch.cat([self.direction, zeros[1]]),
        )

    @property
    def features(self) -> Tensor:
        """(E, R + 1): basis and weight, which the convolutions take as one tensor."""
        return torch.cat([self.basis, self.weight], dim=1)
