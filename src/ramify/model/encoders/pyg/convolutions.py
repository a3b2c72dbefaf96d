"""Graph convolutions of PyTorch Geometric as message passing between atoms, with the radial basis as edge features.

One layer: h_i += silu(conv(LN(h))_i). The convolutions, with e_ij the radial basis times the weight w_ij, are those of
PyTorch Geometric with their parameters, except that every edge counts by its weight, so that energies are smooth:

    gine    MLP((1 + ε) h_i + Σ_j w_ij silu(h_j + W e_ij) / sqrt(n))        silu instead of ReLU; arXiv:1905.12265
    cgcnn   h_i + Σ_j w_ij σ(W_f z_ij) softplus(W_s z_ij) / sqrt(n)         z = [h_i, h_j, e]; arXiv:1710.10324
    sage    W_1 mean_j(h_j * W e_ij) + W_2 h_i                              arXiv:1706.02216
    gatv2   Σ_j softmax_j(a · silu(W_r h_i + W_l h_j + W e_ij)) W_l h_j     silu instead of leaky ReLU; arXiv:2105.14491
    pna     W [h_i, S(mean, std, softmax, softmin of W_p [h_i, h_j, W e_ij])]   arXiv:2004.05718
    mfc     Σ_k β_k(d_i) (W_k Σ_j w_ij h_j * W e_ij / sqrt(n) + V_k h_i)    weights by the degree d; arXiv:1509.09292

An edge counts as w_ij edges in means, softmax and degrees d; in sage, gatv2 and pna each atom is also a neighbour of
itself with weight 1 and e = 0, so that they stay defined and smooth when the last neighbour leaves. Extreme values are
softmax-weighted means, the scalers S are 1, log(d + 1) / log(n + 1) and its inverse, and β are quadratic B-splines:
maxima and integer degrees would make forces jump.
"""

import math

import torch
from torch import Tensor, nn
from torch_geometric.nn.conv import CGConv, GATv2Conv, GINEConv, MFConv, PNAConv, SAGEConv

from ramify.model.encoders.pyg.edges import Edges
from ramify.model.kernels.activation import SiLU
from ramify.recipe.encoder import PyGOptions

AGGREGATORS, SCALERS = ["mean", "std", "max", "min"], ["identity", "amplification", "attenuation"]
"""Of PNA; their numbers determine the shapes of its weights."""

DEGREES = 8
"""Of MFC: degree-dependent weights."""

SMALL = 1e-4
"""Variance below which standard deviations are smoothed."""


def sums(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sums of the rows of `values` (E, ...) with equal `index` (E,), (size, ...)."""
    return values.new_zeros(size, *values.shape[1:]).index_add(0, index, values)


def softmax(scores: Tensor, weight: Tensor, index: Tensor, size: int) -> Tensor:
    """w exp(s) / Σ w exp(s) over the edges of each atom: scores (E, H), weights (E, 1), of each atom one above 0."""
    counted = torch.where(weight > 0, scores, -torch.inf).detach()
    where = index[:, None].expand_as(scores)
    top = torch.full_like(counted[:1], -torch.inf).repeat(size, 1).scatter_reduce(0, where, counted, "amax")
    # edges without weight may exceed the maximum of the others
    shares = weight * torch.exp((scores - top.index_select(0, index)).clamp(max=0.0))
    return shares / sums(shares, index, size).index_select(0, index)


class GINE(GINEConv):
    """See the module's docstring."""

    def __init__(self, options: PyGOptions) -> None:
        width = options.width
        network = nn.Sequential(nn.Linear(width, width), SiLU(), nn.Linear(width, width))
        super().__init__(network, train_eps=True, edge_dim=options.radial)
        self.scale = 1.0 / math.sqrt(options.typical_neighbors)

    def message(self, x_j: Tensor, edge_attr: Tensor) -> Tensor:
        """(E, F)."""
        basis, weight = edge_attr[:, :-1], edge_attr[:, -1:]
        return nn.functional.silu(x_j + self.lin(basis)) * (weight * self.scale)


class CGCNN(CGConv):
    """See the module's docstring."""

    def __init__(self, options: PyGOptions) -> None:
        super().__init__(options.width, options.radial)
        self.scale = 1.0 / math.sqrt(options.typical_neighbors)

    def message(self, x_i: Tensor, x_j: Tensor, edge_attr: Tensor) -> Tensor:
        """(E, F)."""
        return super().message(x_i, x_j, edge_attr[:, :-1]) * (edge_attr[:, -1:] * self.scale)


class SAGE(SAGEConv):
    """See the module's docstring."""

    def __init__(self, options: PyGOptions) -> None:
        super().__init__(options.width, options.width, aggr="sum")
        self.filter = nn.Linear(options.radial, options.width, bias=False)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        """(N, F) -> (N, F)."""
        degree = sums(edge_attr[:, -1:], edge_index[1], x.shape[0])
        # propagate_type: (x: PairTensor, edge_attr: Tensor)
        collected = self.propagate(edge_index, x=(x, x), edge_attr=edge_attr)
        return self.lin_l(collected / degree) + self.lin_r(x)

    def message(self, x_j: Tensor, edge_attr: Tensor) -> Tensor:
        """(E, F)."""
        return x_j * self.filter(edge_attr[:, :-1])


class GATv2(GATv2Conv):
    """See the module's docstring."""

    def __init__(self, options: PyGOptions) -> None:
        width, heads = options.width, options.heads
        super().__init__(width, width // heads, heads, add_self_loops=False, edge_dim=options.radial)

    def edge_update(self, x_j: Tensor, x_i: Tensor, edge_attr: Tensor, index: Tensor, dim_size: int) -> Tensor:
        """Attention of the edges (E, heads)."""
        edge = self.lin_edge(edge_attr[:, :-1]).view(-1, self.heads, self.out_channels)
        scores = (nn.functional.silu(x_i + x_j + edge) * self.att).sum(dim=-1)
        return softmax(scores, edge_attr[:, -1:], index, dim_size)


class Moments(nn.Module):
    """The aggregation of PNA; see the module's docstring.

    Args:
        neighbors: n, typical number of neighbours.
    """

    def __init__(self, neighbors: float) -> None:
        super().__init__()
        self.typical = math.log(neighbors + 1.0)

    def forward(
        self, x: Tensor, index: Tensor, ptr: Tensor | None = None, dim_size: int | None = None, dim: int = -2
    ) -> Tensor:
        """Messages with the weight in their last column, (E, 1, F + 1) -> (N, 1, 12 F)."""
        assert dim_size is not None
        values, weight = x[:, 0, :-1], x[:, 0, -1:]
        degree = sums(weight, index, dim_size)
        mean, square = (sums(weight * v, index, dim_size) / degree for v in (values, values.square()))
        std = torch.sqrt((square - mean.square()).clamp(min=0.0) + SMALL)
        ends = [sums(softmax(v, weight, index, dim_size) * values, index, dim_size) for v in (values, -values)]
        found = torch.cat([mean, std, *ends], dim=1)
        scale = torch.log(degree + 1.0) / self.typical
        return torch.cat([found, found * scale, found / scale], dim=1)[:, None]


class PNA(PNAConv):
    """See the module's docstring."""

    def __init__(self, options: PyGOptions) -> None:
        width = options.width
        degrees = torch.ones(2, device="cpu")  # not used, but their values are read
        super().__init__(width, width, AGGREGATORS, SCALERS, degrees, edge_dim=options.radial)
        self.aggr_module = Moments(options.typical_neighbors)

    def message(self, x_i: Tensor, x_j: Tensor, edge_attr: Tensor) -> Tensor:
        """(E, 1, F + 1)."""
        found = super().message(x_i, x_j, edge_attr[:, :-1])
        return torch.cat([found, edge_attr[:, None, -1:]], dim=2)


class MFC(MFConv):
    """See the module's docstring."""

    def __init__(self, options: PyGOptions) -> None:
        super().__init__(options.width, options.width, DEGREES)
        self.filter = nn.Linear(options.radial, options.width, bias=False)
        self.neighbors = options.typical_neighbors

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        """(N, F) -> (N, F)."""
        degree = sums(edge_attr[:, -1:], edge_index[1], x.shape[0])
        place = DEGREES * torch.tanh(degree / self.neighbors)
        # propagate_type: (x: PairTensor, edge_attr: Tensor)
        collected = self.propagate(edge_index, x=(x, x), edge_attr=edge_attr) / math.sqrt(self.neighbors)
        found = torch.zeros_like(x)
        for k in range(DEGREES + 1):
            away = (place - k).abs()
            share = torch.where(away < 0.5, 0.75 - away.square(), 0.5 * (1.5 - away).clamp(min=0.0).square())
            found = found + share * (self.lins_l[k](collected) + self.lins_r[k](x))
        return found

    def message(self, x_j: Tensor, edge_attr: Tensor) -> Tensor:
        """(E, F)."""
        return x_j * self.filter(edge_attr[:, :-1])


class ConvolutionLayer(nn.Module):
    """A convolution with normalisation and residual; see the module's docstring."""

    def __init__(self, convolution: nn.Module, width: int) -> None:
        super().__init__()
        self.norm, self.convolution = nn.LayerNorm(width), convolution

    def forward(self, scalars: Tensor, edges: Edges) -> Tensor:
        """Updates scalars (N, F)."""
        found: Tensor = self.convolution(self.norm(scalars), edges.index, edges.features)
        return scalars + nn.functional.silu(found)


CONVOLUTIONS: dict[str, type[nn.Module]] = {
    "gine": GINE,
    "cgcnn": CGCNN,
    "sage": SAGE,
    "gatv2": GATv2,
    "pna": PNA,
    "mfc": MFC,
}
"""By the value of `model.encoder.layer`."""

LOOPED = {"sage", "gatv2", "pna"}
"""Those for which each atom is a neighbour of itself."""
