"""TensorNet (Simeon & De Fabritiis, arXiv:2306.06482): one 3 x 3 matrix per atom and channel.

A matrix X is the sum of a multiple of the identity, an antisymmetric and a symmetric traceless part, X = I + A + S.
Linear maps mix channels, with separate weights for each part. ρ is the radial basis times the weight of an edge.
    embedding    X_i = Σ_j Z_ij (f_I 1 + f_A [r̂]ₓ + f_S (r̂ r̂ᵀ - 1/3)),   f = ρ W,  Z_ij = E [z_i, z_j]     eq. 5 and 6
                 parts scaled by a network of LN(|X_i|²), after linear maps                               eq. 7
    interaction  X̂ = X / (|X|² + 1);   Y = linear(X̂);   M_i = Σ_j (f_I I_j + f_A A_j + f_S S_j)      eq. 8 and 9
                 Y' = Y M + M Y, divided by |Y'|² + 1, mixed;   X = X̂ + Y' + Y'²                     eq. 10
    output       scalars = W LN([|I|², |A|², |S|²]);   vectors: mixed from those of A
where [r]ₓ is the matrix of the cross product with r. Y M + M Y is symmetric in left and right, which preserves parity:
under reflection all r and A change sign relative to I and S, scalars are invariant, and the vectors of A transform
like r. Differences from the paper: w_ij is the weight of the graph instead of the cosine cutoff, the radial basis
consists of Bessel functions, sums are divided by sqrt(n), and Z_i is added to I, so that it is not zero for an isolated
atom.
"""

import math

import torch
from torch import Tensor, nn

from ramify.model.encoders.base import Encoder, element_embedding
from ramify.model.graph import Graph
from ramify.model.kernels.activation import SiLU
from ramify.model.radial import BesselBasis
from ramify.recipe.encoder import TensorNetOptions


def parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices (N, 3, 3, K) -> isotropic, antisymmetric and symmetric traceless parts, each (N, 3, 3, K)."""
    mean = torch.diagonal(x, dim1=1, dim2=2).mean(2)
    isotropic = mean[:, None, None] * torch.eye(3, dtype=x.dtype, device=x.device)[:, :, None]
    transposed = x.transpose(1, 2)
    return isotropic, 0.5 * (x - transposed), 0.5 * (x + transposed) - isotropic


def square(x: Tensor) -> Tensor:
    """|X|², (N, 3, 3, K) -> (N, K)."""
    return x.square().sum((1, 2))


def product(x: Tensor, y: Tensor) -> Tensor:
    """X Y of matrices (N, 3, 3, K)."""
    return (x[:, :, :, None] * y[:, None]).sum(2)


def cross(r: Tensor) -> Tensor:
    """(E, 3) -> matrices of the cross product (E, 3, 3)."""
    x, y, z = r.unbind(1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], 1).view(r.shape[0], 3, 3)


class Mix(nn.Module):
    """A linear map of channels for each part."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(channels, channels, bias=False) for _ in range(3))

    def forward(self, *three: Tensor) -> list[Tensor]:
        """Each (N, 3, 3, K)."""
        return [mix(part) for mix, part in zip(self.maps, three, strict=True)]


class TensorNetLayer(nn.Module):
    """One interaction; see the module's docstring."""

    def __init__(self, channels: int, radial: int, neighbors: float) -> None:
        super().__init__()
        self.channels, self.scale = channels, 1.0 / math.sqrt(neighbors)
        self.filter = nn.Sequential(nn.Linear(radial, channels), SiLU(), nn.Linear(channels, 3 * channels))
        self.before, self.after = Mix(channels), Mix(channels)

    def forward(self, x: Tensor, graph: Graph, basis: Tensor) -> Tensor:
        """Updates matrices (N, 3, 3, K)."""
        x = x / (square(x) + 1.0)[:, None, None]
        own = self.before(*parts(x))
        filters = (self.filter(basis) * graph.weight[:, None]).split(self.channels, dim=1)
        sent = sum(f[:, None, None] * part.index_select(0, graph.sender) for f, part in zip(filters, own, strict=True))
        assert isinstance(sent, Tensor)
        message = torch.zeros_like(x).index_add(0, graph.receiver, sent.to(x.dtype)) * self.scale
        y = own[0] + own[1] + own[2]
        both = product(y, message) + product(message, y)
        mixed = self.after(*parts(both / (square(both) + 1.0)[:, None, None]))
        delta = mixed[0] + mixed[1] + mixed[2]
        return x + delta + product(delta, delta)


class TensorNet(Encoder):
    """Embedding and `TensorNetLayer`s."""

    Options = TensorNetOptions
    takes_conditions = True
    takes_domains = True

    def __init__(self, options: TensorNetOptions) -> None:
        super().__init__(options, vector_channels=options.vector_channels)
        self.rounds = options.layers + 1  # the embedding includes neighbours
        k, self.channels, self.scale = options.channels, options.channels, 1.0 / math.sqrt(options.typical_neighbors)
        self.basis = BesselBasis(options.radial, options.cutoff)
        self.embedding = element_embedding(options.elements, k)
        self.pair = nn.Linear(2 * k, k)
        self.filter = nn.Linear(options.radial, 3 * k, bias=False)
        self.size_norm = nn.LayerNorm(k)
        self.sizes = nn.Sequential(nn.Linear(k, 2 * k), SiLU(), nn.Linear(2 * k, 3 * k))
        self.start = Mix(k)
        self.layers = nn.ModuleList(
            TensorNetLayer(k, options.radial, options.typical_neighbors) for _ in range(options.layers)
        )
        self.norm = nn.LayerNorm(3 * k)
        self.out = nn.Linear(3 * k, options.width)
        self.out_norm = nn.LayerNorm(options.width)
        self.vectors = nn.Linear(k, options.vector_channels, bias=False)

    def forward(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """Invariant scalars (N, width) and equivariant vectors (N, 3, vector_channels)."""
        basis = self.basis(graph.distance) * graph.weight[:, None]
        x = self._embedded(graph, basis)
        for layer in self.layers:
            (x,) = self.exchanged(graph, x)  # the embedding is the first round
            x = self.through(layer, x, graph, basis)
        found = parts(x)
        scalars = self.out_norm(self.out(self.norm(torch.cat([square(part) for part in found], dim=1))))
        a = found[1]
        return scalars, self.vectors(torch.stack([a[:, 2, 1], a[:, 0, 2], a[:, 1, 0]], 1))

    def _embedded(self, graph: Graph, basis: Tensor) -> Tensor:
        """The initial matrices of atoms, (N, 3, 3, K)."""
        z = self.embed(graph)
        ends = torch.cat([z.index_select(0, graph.receiver), z.index_select(0, graph.sender)], dim=1)
        f = self.filter(basis) * self.pair(ends).repeat(1, 3)
        f_i, f_a, f_s = (part[:, None, None] for part in f.split(self.channels, dim=1))
        r = graph.direction
        eye = torch.eye(3, dtype=r.dtype, device=r.device)
        symmetric = r[:, :, None] * r[:, None] - eye / 3.0
        edges = f_i * eye[:, :, None] + f_a * cross(r)[..., None] + f_s * symmetric[..., None]
        none = r.new_zeros(z.shape[0], 3, 3, self.channels)
        x = none.index_add(0, graph.receiver, edges.to(none.dtype)) * self.scale + eye[:, :, None] * z[:, None, None]
        sizes = self.sizes(self.size_norm(square(x))).split(self.channels, dim=1)
        mixed = self.start(*parts(x))
        return sum((part * size[:, None, None] for part, size in zip(mixed, sizes, strict=True)), torch.zeros_like(x))
