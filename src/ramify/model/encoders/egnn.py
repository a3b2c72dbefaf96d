"""EGNN encoder (Satorras et al., arXiv:2102.09844) with vector channels.

The original updates one coordinate per atom and uses |x_i - x_j|² in its messages. Here every atom has C vectors v_i
that start at zero: x_i + v_i are C displaced copies of the atom. The expansion of |(x_j + v_j) - (x_i + v_i)|² contains
the projections v·r̂_ij and the invariants v·v, through which messages depend on angles. Positions themselves are never
features, so scalars are invariant and vectors equivariant under rotation, translation and permutation.

One layer, for edges i <- j with weight w_ij (smooth, zero at the cutoff):
    z_ij  = A h_i + B h_j + R rbf(d_ij) w_ij + P [u_i·r̂_ij, u_j·r̂_ij]   first edge layer, split: products on atoms
    m_ij  = silu(W silu(z_ij)) * (F rbf(d_ij) w_ij)                     message, filtered by distance
    v_i  += Σ_j (g_ij r̂_ij + k_ij u_j) / sqrt(n),   [g, k] = G m_ij     coordinate channel
    h_i  += U [h_i, Σ_j m_ij / sqrt(n), (V u_i)·(V' u_i)]               node update, two layers
    v_i  += γ_i V" u_i                                                  γ from the node update
where h is layer-normalised and u is v after `normalised`, so that no layer can amplify without bound.
"""

import math

import torch
from torch import Tensor, nn

from ramify.model.encoders.base import Encoder, element_embedding, normalised
from ramify.model.graph import Graph
from ramify.model.kernels.activation import SiLU
from ramify.model.kernels.aligned import aligned, aligned_linear, padded
from ramify.model.kernels.counting import is_counting
from ramify.model.kernels.messages import MessageWeights, blockwise, plain
from ramify.model.lora import weight_of
from ramify.model.radial import BesselBasis
from ramify.recipe.encoder import EGNNOptions


class EGNNLayer(nn.Module):
    """One round of message passing; see the module's docstring.

    Args:
        width: scalar features per atom, F.
        channels: vector features per atom, C.
        radial: size of the radial basis.
        neighbors: typical number of neighbours; sums over them are divided by its square root.
        message_layers: 2 for a second layer with activation on every edge, 1 without it.
        first: whether vectors are still zero, so that there are no projections.
    """

    def __init__(
        self, width: int, channels: int, radial: int, neighbors: float, *, message_layers: int, first: bool
    ) -> None:
        super().__init__()
        self.first = first
        self.width, self.channels = width, channels
        self.scale = 1.0 / math.sqrt(neighbors)
        self.norm = nn.LayerNorm(width)
        self.from_receiver = nn.Linear(width, width)
        self.from_sender = nn.Linear(width, width, bias=False)
        self.from_distance = nn.Parameter(torch.empty(radial, 2 * width).uniform_(-1, 1) / math.sqrt(radial))
        self.from_projection = None if first else nn.Linear(2 * channels, width, bias=False)
        self.message = nn.Linear(width, width) if message_layers == 2 else None
        self.vector_gates = nn.Linear(width, channels if first else 2 * channels, bias=False)
        self.vector_mix = nn.Linear(channels, 3 * channels, bias=False)
        self.update = nn.Sequential(nn.Linear(2 * width + channels, width), SiLU(), nn.Linear(width, width + channels))

    def forward(self, scalars: Tensor, vectors: Tensor, graph: Graph, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Updates scalars (N, F) and vectors (N, 3, C). `basis` is (E, radial), zero at the cutoff."""
        receiver, sender = graph.receiver, graph.sender
        direction = graph.direction[:, :, None]
        h, u = self.norm(scalars), normalised(vectors)
        edge_inputs, sent = basis, u
        if not self.first:
            sent = u.index_select(0, sender)
            toward = torch.cat([u.index_select(0, receiver), sent], dim=2)
            edge_inputs = torch.cat([basis, (toward * direction).sum(1)], dim=1)
        collected, gates = self._messages(h, edge_inputs, basis, graph)
        gates = gates[:, None, :]
        along = direction * gates[..., : self.channels]
        if not self.first:
            along = along + gates[..., self.channels :] * sent
        pushed = vectors.new_zeros(vectors.shape).index_add(0, receiver, along.to(vectors.dtype))
        vectors = vectors + pushed * self.scale
        a, b, c = self.vector_mix(normalised(vectors)).split(self.channels, dim=2)
        seen = torch.cat([h, collected * self.scale, (a * b).sum(1)], dim=1)
        delta, gate = self.update(seen).split([self.width, self.channels], dim=1)
        return scalars + delta, vectors + gate[:, None, :] * c

    def _messages(self, h: Tensor, edge_inputs: Tensor, basis: Tensor, graph: Graph) -> tuple[Tensor, Tensor]:
        """Messages summed at their receivers (N, F), and the gates of vectors on edges."""
        full = aligned(self.width)
        of_basis, radial = self.from_distance.split(self.width, dim=1)
        inputs = of_basis
        if self.from_projection is not None:
            inputs = torch.cat([of_basis, weight_of(self.from_projection).t()])
        weights = MessageWeights(
            inputs=padded(inputs, len(inputs), full),
            hidden=None if self.message is None else padded(weight_of(self.message), full, full),
            bias=None if self.message is None else padded(self.message.bias, full),
            radial=padded(radial, len(radial), full),
            gates=padded(weight_of(self.vector_gates), self.vector_gates.out_features, full),
        )
        ends = aligned_linear(self.from_receiver, h), aligned_linear(self.from_sender, h)
        kind = basis.device.type
        products = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else basis.dtype
        # a trace cannot contain Python code, and a compiler selects fused operations and saved tensors itself
        is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
        if is_traced or is_counting() or (basis.requires_grad and products != basis.dtype):
            collected, gates = plain(*ends, edge_inputs, basis, weights, graph.receiver, graph.sender)
        else:
            collected, gates = blockwise(*ends, edge_inputs, basis, weights, graph.receiver, graph.sender, products)
        return collected[:, : self.width], gates


class EGNN(Encoder):
    """Stack of `EGNNLayer`s on an embedding of the atomic numbers."""

    Options = EGNNOptions
    takes_conditions = True
    takes_domains = True

    def __init__(self, options: EGNNOptions) -> None:
        super().__init__(options, vector_channels=options.vector_channels)
        self.basis = BesselBasis(options.radial, options.cutoff)
        self.embedding = element_embedding(options.elements, options.width)
        self.layers = nn.ModuleList(
            EGNNLayer(
                options.width,
                options.vector_channels,
                options.radial,
                options.typical_neighbors,
                message_layers=options.message_layers,
                first=index == 0,
            )
            for index in range(options.layers)
        )
        self.norm = nn.LayerNorm(options.width)

    def forward(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """Invariant scalars (N, width) and equivariant vectors (N, 3, vector_channels)."""
        scalars = self.embed(graph)
        vectors = scalars.new_zeros(scalars.shape[0], 3, self.vector_channels)
        basis = self.basis(graph.distance) * graph.weight[:, None]
        for index, layer in enumerate(self.layers):
            if index > 0:
                scalars, vectors = self.exchanged(graph, scalars, vectors)
            scalars, vectors = self.through(layer, scalars, vectors, graph, basis)
        return self.norm(scalars), vectors
