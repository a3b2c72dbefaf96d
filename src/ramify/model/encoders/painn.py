"""PaiNN (Schütt, Unke & Gastegger, arXiv:2102.03150).

One layer, with scalars s_i, vectors v_i, filters W of the radial basis and L = L(r̂) the direction from i to j:
    [x, y, z]_ij = φ(s_j) * (W rbf(d_ij) w_ij)                     eq. 7 and 8, φ a network of two layers
    s_i += Σ_j x_ij / sqrt(n);   v_i += Σ_j (y_ij v_j + z_ij r̂_ij) / sqrt(n)
    [a, b, c]_i = ψ([s_i, |V v_i|])                                eq. 9 and 10
    s_i += a_i + b_i (U v_i · V v_i);   v_i += c_i U v_i
As in the paper, vectors have F channels like scalars. Differences: w_ij is the weight of the graph instead of the
cosine cutoff; sums are divided by sqrt(n); scalars are layer-normalised and vectors are v / sqrt(1 + mean |v|²), so
that many layers or neighbours cannot cause an overflow; |V v| is smoothed at zero, where its derivative would not
exist.
"""

import math

import torch
from torch import Tensor, nn

from ramify.model.encoders.base import Encoder, element_embedding, normalised
from ramify.model.graph import Graph
from ramify.model.kernels.activation import SiLU
from ramify.model.radial import BesselBasis
from ramify.recipe.encoder import PaiNNOptions

SMALL = 1e-4
"""Square of the length below which |V v| is smoothed."""


class PaiNNLayer(nn.Module):
    """One message and one update; see the module's docstring."""

    def __init__(self, width: int, radial: int, neighbors: float) -> None:
        super().__init__()
        self.width, self.scale = width, 1.0 / math.sqrt(neighbors)
        self.norm = nn.LayerNorm(width)
        self.message = nn.Sequential(nn.Linear(width, width), SiLU(), nn.Linear(width, 3 * width))
        self.filter = nn.Linear(
            radial, 3 * width, bias=False
        )  # no bias, so that it vanishes with the weight of the edge
        self.mix = nn.Linear(width, 2 * width, bias=False)
        self.update_norm = nn.LayerNorm(width)
        self.update = nn.Sequential(nn.Linear(2 * width, width), SiLU(), nn.Linear(width, 3 * width))

    def forward(self, scalars: Tensor, vectors: Tensor, graph: Graph, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Updates scalars (N, F) and vectors (N, 3, F)."""
        receiver, sender, width = graph.receiver, graph.sender, self.width
        sent = self.message(self.norm(scalars)).index_select(0, sender) * self.filter(basis)
        x, y, z = sent.split(width, dim=1)
        of_sender = normalised(vectors).index_select(0, sender)
        pushed = y[:, None] * of_sender + z[:, None] * graph.direction[:, :, None]
        scalars = scalars + torch.zeros_like(scalars).index_add(0, receiver, x.to(scalars.dtype)) * self.scale
        vectors = vectors + torch.zeros_like(vectors).index_add(0, receiver, pushed.to(vectors.dtype)) * self.scale
        u, v = self.mix(normalised(vectors)).split(width, dim=2)
        length = torch.sqrt(v.square().sum(1) + SMALL)
        a, b, c = self.update(torch.cat([self.update_norm(scalars), length], dim=1)).split(width, dim=1)
        return scalars + a + b * (u * v).sum(1), vectors + c[:, None] * u


class PaiNN(Encoder):
    """Stack of `PaiNNLayer`s on an embedding of the atomic numbers."""

    Options = PaiNNOptions
    takes_conditions = True
    takes_domains = True

    def __init__(self, options: PaiNNOptions) -> None:
        super().__init__(options, vector_channels=options.width)
        self.basis = BesselBasis(options.radial, options.cutoff)
        self.embedding = element_embedding(options.elements, options.width)
        self.layers = nn.ModuleList(
            PaiNNLayer(options.width, options.radial, options.typical_neighbors) for _ in range(options.layers)
        )
        self.norm = nn.LayerNorm(options.width)

    def forward(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """Invariant scalars (N, width) and equivariant vectors (N, 3, width)."""
        scalars = self.embed(graph)
        vectors = scalars.new_zeros(scalars.shape[0], 3, self.width)
        basis = self.basis(graph.distance) * graph.weight[:, None]
        for index, layer in enumerate(self.layers):
            if index > 0:
                scalars, vectors = self.exchanged(graph, scalars, vectors)
            scalars, vectors = self.through(layer, scalars, vectors, graph, basis)
        return self.norm(scalars), vectors
