"""SchNet, DimeNet++ and ViSNet from the blocks of PyTorch Geometric, on our edges with their periodic images.

The complete models of PyTorch Geometric build edges from positions, without periodicity, and predict molecules. Here
their blocks are given our distances, directions and triplets, the Bessel basis of the recipe, and the weight w of each
edge in place of cutoff functions, so that energies are smooth wherever a neighbourhood ends.

Angles of DimeNet++ enter by their cosines, in Legendre polynomials: equal to its spherical harmonics, but with
derivatives for collinear atoms. Triplets k -> j -> i are all edges of a table of neighbours for each edge j -> i, empty
slots with weight 0, so that shapes depend on sizes alone. The way back, k = i in the same image, is not a triplet.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn.models.dimenet import EmbeddingBlock, InteractionPPBlock, OutputPPBlock
from torch_geometric.nn.models.dimenet_utils import Jn, Jn_zeros
from torch_geometric.nn.models.schnet import InteractionBlock
from torch_geometric.nn.models.visnet import EdgeEmbedding, NeighborEmbedding, Sphere, ViS_MP

from ramify.elements import MAX_NUMBER
from ramify.model.encoders.neighbor_table import NeighborTable
from ramify.model.encoders.pyg.edges import Edges
from ramify.model.graph import Graph
from ramify.model.kernels.activation import silu
from ramify.recipe.encoder import PyGOptions

Through = Callable[..., Any]
"""`Encoder.through`."""

DEGREES = 7
"""Legendre polynomials of DimeNet++; its default."""


class SchNetLayer(nn.Module):
    """h += interaction(h)."""

    def __init__(self, options: PyGOptions) -> None:
        super().__init__()
        self.block = InteractionBlock(options.width, options.radial, options.width, options.cutoff)
        self.scale = 1.0 / math.sqrt(options.typical_neighbors)

    def forward(self, scalars: Tensor, edges: Edges) -> Tensor:
        """Updates scalars (N, F)."""
        conv = self.block.conv
        filters = conv.nn(edges.basis) * (edges.weight * self.scale)
        found = conv.lin2(conv.propagate(edges.index, x=conv.lin1(scalars), W=filters))
        updated: Tensor = scalars + self.block.lin(self.block.act(found))
        return updated


class DimeNetPP(nn.Module):
    """DimeNet++ (Gasteiger et al., arXiv:2011.14115): messages on edges, updated by those on the edges before them."""

    zeros: Tensor
    norm: Tensor

    def __init__(self, options: PyGOptions) -> None:
        super().__init__()
        width, radial = options.width, options.radial
        inner = max(1, width // 2)
        zeros = Jn_zeros(DEGREES, radial)
        norm = [[math.sqrt(2.0) / abs(float(Jn(z, degree + 1))) for z in row] for degree, row in enumerate(zeros)]
        self.register_buffer("zeros", torch.tensor(zeros / options.cutoff), persistent=False)
        self.register_buffer("norm", torch.tensor(norm), persistent=False)
        self.radial = radial
        self.scale = 1.0 / options.typical_neighbors**0.5
        self.first = EmbeddingBlock(radial, width, silu)
        self.first.emb = nn.Identity()  # the features of atoms are embedded already
        self.interactions = nn.ModuleList(
            InteractionPPBlock(width, inner, 8, DEGREES, radial, 1, 2, silu) for _ in range(options.layers)
        )
        self.outputs = nn.ModuleList(
            OutputPPBlock(radial, width, 2 * width, width, 3, silu, "glorot_orthogonal")
            for _ in range(options.layers + 1)
        )

    def forward(self, scalars: Tensor, graph: Graph, edges: Edges, through: Through) -> tuple[Tensor, None]:
        """Scalars (N, F) -> (N, F), and no vectors."""
        sender, receiver = edges.index
        before, after, spherical = self._triplets(graph, edges)
        basis = edges.basis * self.scale
        messages = self.first(scalars, edges.basis, receiver, sender)
        found = scalars + self.outputs[0](messages, basis, receiver, num_nodes=scalars.shape[0])
        for interaction, output in zip(self.interactions, self.outputs[1:], strict=True):
            messages = through(interaction, messages, edges.basis, spherical, before, after)
            found = found + output(messages, basis, receiver, num_nodes=scalars.shape[0])
        return found, None

    def _triplets(self, graph: Graph, edges: Edges) -> tuple[Tensor, Tensor, Tensor]:
        """Edges k -> j and j -> i of every triplet (T,), and their basis (T, 7 R), for T = E n slots."""
        table, count = NeighborTable.of(graph), graph.sender.shape[0]
        n = table.slots
        ids = torch.arange(count, device=graph.sender.device)
        slots = ids.new_zeros(table.atoms * n + 1).index_copy(0, table.row, ids)[:-1].view(table.atoms, n)
        before = slots.index_select(0, graph.sender).reshape(count * n)
        after = ids[:, None].expand(count, n).reshape(count * n)
        filled = table.spread(torch.ones_like(edges.weight)).index_select(0, graph.sender).reshape(count * n)
        one, other = (graph.direction.index_select(0, of) for of in (before, after))
        vector = one * graph.distance.index_select(0, before)[:, None]
        vector = vector + other * graph.distance.index_select(0, after)[:, None]
        same = graph.sender.index_select(0, before) == graph.receiver.index_select(0, after)
        back = same & (vector.detach().square().sum(1) < 1e-4)
        filled = filled * torch.where(back, 0.0, self.scale)
        radial = self._radial(graph.distance) * edges.weight[:, :, None]
        angular = legendre((one * other).sum(1), DEGREES) * filled[:, None]
        spherical = radial.index_select(0, before) * angular[:, :, None]
        return before, after, spherical.view(count * n, DEGREES * self.radial)

    def _radial(self, distance: Tensor) -> Tensor:
        """Spherical Bessel functions j_l(z_ln d / c), normalised, (E, 7, R) (arXiv:2003.03123, eq. 6); in float64,
        since the recursion in l amplifies rounding at short distances."""
        x = distance.double()[:, None, None] * self.zeros.double()
        found = [torch.sin(x) / x, torch.sin(x) / x.square() - torch.cos(x) / x]
        for degree in range(1, DEGREES - 1):
            found.append((2 * degree + 1) / x * found[degree] - found[degree - 1])
        values = torch.stack([f[:, degree] for degree, f in enumerate(found)], dim=1)
        return (values * self.norm.double()).to(distance.dtype)


def legendre(x: Tensor, count: int) -> Tensor:
    """sqrt((2 l + 1) / 4π) P_l(x) for l < count: (T,) -> (T, count)."""
    found = [torch.ones_like(x), x]
    for degree in range(1, count - 1):
        found.append(((2 * degree + 1) * x * found[degree] - degree * found[degree - 1]) / (degree + 1))
    return torch.stack([math.sqrt((2 * k + 1) / (4 * math.pi)) * p for k, p in enumerate(found)], dim=1)


class ViSNetLayer(ViS_MP):
    """A layer of ViSNet whose messages all have the weight of their edge, which is given in place of its length."""

    def __init__(self, options: PyGOptions, *, last: bool) -> None:
        super().__init__(options.heads, options.width, options.cutoff, None, False, last)
        self.cutoff = nn.Identity()
        self.scale = 1.0 / math.sqrt(options.typical_neighbors)

    def message(
        self, q_i: Tensor, k_j: Tensor, v_j: Tensor, vec_j: Tensor, dk: Tensor, dv: Tensor, r_ij: Tensor, d_ij: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(E, F) and (E, 8, F)."""
        scalars, vectors = super().message(q_i, k_j, v_j, vec_j, dk, dv, r_ij, d_ij)
        return scalars * self.scale, vectors * (r_ij * self.scale)[:, None, None]


class ViSNet(nn.Module):
    """ViSNet (Wang et al., arXiv:2210.16518) with vectors and tensors of rank 2; atoms are neighbours of themselves."""

    def __init__(self, options: PyGOptions) -> None:
        super().__init__()
        width, radial = options.width, options.radial
        self.sphere = Sphere(2)
        self.neighbors = NeighborEmbedding(width, radial, options.cutoff, MAX_NUMBER + 1)
        self.scale = 1.0 / math.sqrt(options.typical_neighbors)
        self.edges = EdgeEmbedding(radial, width)
        self.layers = nn.ModuleList(
            ViSNetLayer(options, last=index == options.layers - 1) for index in range(options.layers)
        )

    def forward(self, scalars: Tensor, graph: Graph, edges: Edges, through: Through) -> tuple[Tensor, Tensor]:
        """Scalars (N, F) -> (N, F) and vectors (N, 3, F)."""
        block = self.neighbors
        filters = block.distance_proj(edges.basis) * (edges.weight * self.scale)
        collected = block.propagate(edges.index, x=block.embedding(graph.numbers), W=filters)
        scalars = block.combine(torch.cat([scalars, collected], dim=1))
        looped = edges.with_loops(scalars.shape[0])
        directions, weight = self.sphere(looped.direction), looped.weight[:, 0]
        features = self.edges(looped.index, looped.basis, scalars)
        vectors = scalars.new_zeros(scalars.shape[0], 8, scalars.shape[1])
        for layer in self.layers:
            more = through(layer, scalars, vectors, looped.index, weight, features, directions)
            scalars, vectors = scalars + more[0], vectors + more[1]
            features = features if more[2] is None else features + more[2]
        return scalars, vectors[:, :3]
