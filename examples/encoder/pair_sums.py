"""An encoder in a package of its own: sums over neighbours of learnt functions of distance, element by element.

`PairSumsOptions` defines the recipe keys; keys that all encoders have (layers, width, cutoff, ...) are inherited. With
w_ij the weight of an edge, which falls to zero where the neighbourhood of an atom ends, a layer is

    h_i += U(Σ_j (A h_j) * (R rbf(d_ij) w_ij) / sqrt(n)),   v_i += Σ_j G(h_j) * (S rbf(d_ij) w_ij) r̂_ij / sqrt(n)

Scalars h depend on distances alone, so they are invariant under rotation and reflection; vectors v rotate with r̂.
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ramify.model.encoders.base import Encoder, element_embedding
from ramify.model.graph import Graph
from ramify.model.radial import BesselBasis
from ramify.recipe import EncoderOptions


class PairSumsOptions(EncoderOptions):
    """Sums over neighbours of learnt functions of distance."""

    kind: Literal["pair_sums"] = "pair_sums"
    vector_channels: int = Field(8, ge=1)
    """Vector features per atom, from which direct forces are computed."""


class PairSumsLayer(nn.Module):
    """One layer; see the module's docstring."""

    def __init__(self, options: PairSumsOptions) -> None:
        super().__init__()
        width, channels, radial = options.width, options.vector_channels, options.radial
        self.scale = 1.0 / math.sqrt(options.typical_neighbors)
        self.norm = nn.LayerNorm(width)
        self.send = nn.Linear(width, width)
        self.scalar_filter = nn.Linear(radial, width, bias=False)
        self.gate = nn.Linear(width, channels)
        self.vector_filter = nn.Linear(radial, channels, bias=False)
        self.update = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, scalars: Tensor, vectors: Tensor, graph: Graph, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Scalars (N, F) and vectors (N, 3, C) -> the same, updated. `basis` is (E, radial), weighted."""
        h = self.norm(scalars)
        sent = self.send(h).index_select(0, graph.sender) * self.scalar_filter(basis)
        along = self.gate(h).index_select(0, graph.sender) * self.vector_filter(basis)
        pushed = along[:, None] * graph.direction[:, :, None]
        # sums keep the precision of the scalars, also if products are computed in bfloat16
        collected = torch.zeros_like(scalars).index_add(0, graph.receiver, sent.to(scalars.dtype))
        pull = torch.zeros_like(vectors).index_add(0, graph.receiver, pushed.to(vectors.dtype))
        return scalars + self.update(collected * self.scale), vectors + pull * self.scale


class PairSums(Encoder):
    """The class that the entry point names: options, and an `nn.Module` built from them."""

    Options = PairSumsOptions
    takes_conditions = True  # `forward` begins with `embed`

    def __init__(self, options: PairSumsOptions) -> None:
        super().__init__(options, vector_channels=options.vector_channels)
        self.basis = BesselBasis(options.radial, options.cutoff)
        self.embedding = element_embedding(options.elements, options.width)
        self.layers = nn.ModuleList(PairSumsLayer(options) for _ in range(options.layers))
        self.norm = nn.LayerNorm(options.width)

    def forward(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """Invariant scalars (N, width) and equivariant vectors (N, 3, vector_channels)."""
        scalars = self.embed(graph)
        vectors = scalars.new_zeros(scalars.shape[0], 3, self.vector_channels)
        basis = self.basis(graph.distance) * graph.weight[:, None]
        for layer in self.layers:
            scalars, vectors = self.through(layer, scalars, vectors, graph, basis)
        return self.norm(scalars), vectors
