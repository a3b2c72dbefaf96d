"""A straightforward form of the layer of `ramify.model.encoders.egnn`, as a reference for speed.

The inputs of the first edge layer are concatenated on every edge, [h_i, h_j, basis, projections], for one matrix
product; all operations are standard PyTorch; sums over neighbours are scattered. Weights are copies of those of the
original layer, so that both give the same numbers (`tests/model/test_messages.py` compares them to 1e-10 in float64).
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ramify.model.encoders.base import normalised
from ramify.model.encoders.egnn import EGNN, EGNNLayer
from ramify.model.graph import Graph
from ramify.model.multibranch import MultiBranch


class NaiveLayer(nn.Module):
    """Equal to `layer`."""

    def __init__(self, layer: EGNNLayer) -> None:
        super().__init__()
        self.first, self.width, self.channels, self.scale = layer.first, layer.width, layer.channels, layer.scale
        self.norm, self.message, self.update = layer.norm, layer.message, layer.update
        self.vector_gates, self.vector_mix = layer.vector_gates, layer.vector_mix
        of_basis, radial = layer.from_distance.detach().split(layer.width, dim=1)
        parts = [layer.from_receiver.weight, layer.from_sender.weight, of_basis.t()]
        if layer.from_projection is not None:
            parts.append(layer.from_projection.weight)
        weight = torch.cat([part.detach() for part in parts], dim=1)
        self.edge = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
        self.edge.weight = nn.Parameter(weight.clone())
        self.edge.bias = nn.Parameter(layer.from_receiver.bias.detach().clone())
        self.radial = nn.Parameter(radial.clone())

    def forward(self, scalars: Tensor, vectors: Tensor, graph: Graph, basis: Tensor) -> tuple[Tensor, Tensor]:
        """As `EGNNLayer.forward`."""
        receiver, sender, direction = graph.receiver, graph.sender, graph.direction[:, :, None]
        h, u = self.norm(scalars), normalised(vectors)
        inputs = [h[receiver], h[sender], basis]
        if not self.first:
            inputs.append((torch.cat([u[receiver], u[sender]], dim=2) * direction).sum(1))
        message = silu(self.edge(torch.cat(inputs, dim=1)))
        if self.message is not None:
            message = silu(self.message(message))
        message = message * (basis @ self.radial)
        gates = self.vector_gates(message)[:, None, :]
        along = direction * gates[..., : self.channels]
        if not self.first:
            along = along + gates[..., self.channels :] * u[sender]
        collected = torch.zeros_like(scalars).index_add(0, receiver, message.to(scalars.dtype))
        vectors = vectors + torch.zeros_like(vectors).index_add(0, receiver, along.to(vectors.dtype)) * self.scale
        a, b, c = self.vector_mix(normalised(vectors)).split(self.channels, dim=2)
        changes = self.update(torch.cat([h, collected * self.scale, (a * b).sum(1)], dim=1))
        delta, gate = changes.split([self.width, self.channels], dim=1)
        return scalars + delta, vectors + gate[:, None, :] * c


def make_naive(model: MultiBranch) -> MultiBranch:
    """Replaces the layers of `model` by naive ones; returns the changed model."""
    encoder = model.encoder
    assert isinstance(encoder, EGNN)
    layers = [layer for layer in encoder.layers if isinstance(layer, EGNNLayer)]
    encoder.layers = nn.ModuleList(NaiveLayer(layer) for layer in layers)
    return model
