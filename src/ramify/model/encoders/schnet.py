"""SchNet (Schütt et al., arXiv:1706.08566): continuous-filter convolutions on distances alone.

One interaction, with scalars h_i, ssp(x) = ln(1/2 eˣ + 1/2) and a filter network of two layers on Gaussians e_k:
    W_ij = w_ij network(e(d_ij)),   e_k(d) = exp(-γ (d - μ_k)²)       eq. 4 and section 4
    x_i  = Σ_j (A h_j) * W_ij / sqrt(n)
    h_i += B ssp(C x_i)
Differences from the paper: w_ij is the weight of the graph, so that filters vanish smoothly at the cutoff; sums are
divided by sqrt(n). There are no vectors, hence no direct forces.
"""

import math

import torch
from torch import Tensor, nn

from ramify.model.encoders.base import Encoder, element_embedding
from ramify.model.graph import Graph
from ramify.recipe.encoder import SchNetOptions


class ShiftedSoftplus(nn.Module):
    """ln(1/2 eˣ + 1/2)."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return nn.functional.softplus(x) - math.log(2.0)


class Gaussians(nn.Module):
    """exp(-γ (d - μ_k)²), μ_k evenly from 0 to the cutoff, γ = 1 / (2 spacing²)."""

    centre: Tensor

    def __init__(self, size: int, cutoff: float) -> None:
        super().__init__()
        self.gamma = 0.5 * ((size - 1) / cutoff) ** 2
        self.register_buffer("centre", torch.arange(size) * cutoff / (size - 1), persistent=False)

    def forward(self, distance_E: Tensor) -> Tensor:
        """(E,) Å -> (E, size)."""
        return torch.exp(-self.gamma * (distance_E[:, None] - self.centre.to(distance_E.dtype)).square())


class Interaction(nn.Module):
    """One continuous-filter convolution; see the module's docstring."""

    def __init__(self, width: int, radial: int, neighbors: float) -> None:
        super().__init__()
        self.scale = 1.0 / math.sqrt(neighbors)
        self.filter = nn.Sequential(nn.Linear(radial, width), ShiftedSoftplus(), nn.Linear(width, width))
        self.before = nn.Linear(width, width, bias=False)
        self.after = nn.Sequential(nn.Linear(width, width), ShiftedSoftplus(), nn.Linear(width, width))

    def forward(self, scalars: Tensor, graph: Graph, basis: Tensor) -> Tensor:
        """Updates scalars (N, F)."""
        filters = self.filter(basis) * graph.weight[:, None]
        sent = self.before(scalars).index_select(0, graph.sender) * filters
        collected = torch.zeros_like(scalars).index_add(0, graph.receiver, sent.to(scalars.dtype))
        updated: Tensor = scalars + self.after(collected * self.scale)
        return updated


class SchNet(Encoder):
    """Stack of `Interaction`s on an embedding of the atomic numbers."""

    Options = SchNetOptions
    takes_conditions = True
    takes_domains = True

    def __init__(self, options: SchNetOptions) -> None:
        super().__init__(options, vector_channels=0)
        self.basis = Gaussians(options.radial, options.cutoff)
        self.embedding = element_embedding(options.elements, options.width)
        self.layers = nn.ModuleList(
            Interaction(options.width, options.radial, options.typical_neighbors) for _ in range(options.layers)
        )
        self.norm = nn.LayerNorm(options.width)

    def forward(self, graph: Graph) -> tuple[Tensor, None]:
        """Invariant scalars (N, width), and no vectors."""
        scalars = self.embed(graph)
        basis = self.basis(graph.distance)
        for index, layer in enumerate(self.layers):
            if index > 0:
                (scalars,) = self.exchanged(graph, scalars)
            scalars = self.through(layer, scalars, graph, basis)
        return self.norm(scalars), None
