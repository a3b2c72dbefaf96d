"""Many-body message passing in Cartesian components, with sums over neighbours as batched matrix products.

The features of an atom are products of sums over its neighbours (the atomic cluster expansion, Drautz,
arXiv:1902.00321), so that each layer describes correlations of up to `body_order` atoms, and layers pass messages.
Related: MACE (arXiv:2206.07697), CACE (arXiv:2402.07472), GRACE (arXiv:2311.16326), TensorNet (arXiv:2306.06482).

Vectors are (N, 3, K); tensors of rank 2 are symmetric and traceless, (N, 5, K) in the orthonormal basis of `rank_two`.
ρ is the radial basis times the weight of an edge; Y1 = r̂, Y2 = sqrt(3/2) (r̂ r̂ᵀ - 1/3). Sums over neighbours j of atom i
are divided by sqrt(n), and û = u / sqrt(1 + mean |u|²). One layer:
    s = W LN(h) in three parts;  M_l = (ρ R_l) s_l[j]
    A_0 = Σ_j M_0;  A_1 = Σ_j Y1 M_1 + v + U_1 Σ_j ρ (D_1 v̂)_j;  A_2 = Σ_j Y2 M_2 + T + U_2 Σ_j ρ (D_2 T̂)_j
    A_l *= 1 + (G LN(h))_l              gates of the receiver: radial functions of pairs of elements, on atoms alone
    [a, b] = X_1 Â_1,  [p, q] = X_2 Â_2      and P, Q the matrices of p, q
    invariants:  a·b, p:q  (three bodies),  a·(P b), q:(P Q)  (four bodies)
    [Δ, g] = MLP[LN(h), A_0, U_0 Σ_j ρ (D_1 v̂)_j·r̂, invariants];  h += Δ
    v = A_1 + g_1 a + g_2 P b;  T = A_2 + g_3 p + g_4 (a bᵀ) + g_5 (P Q)     symmetric traceless parts
The first layer has no v and T and no terms with them; the last layer has no g.
"""

import math

import torch
from torch import Tensor, nn

from ramify.model.encoders.base import Encoder, element_embedding, normalised
from ramify.model.encoders.neighbor_table import NeighborTable
from ramify.model.graph import Graph
from ramify.model.kernels.activation import SiLU
from ramify.model.radial import BesselBasis
from ramify.recipe.encoder import ManyBodyOptions

S2, S6 = math.sqrt(1 / 2), math.sqrt(1 / 6)


def rank_two(x: Tensor, y: Tensor, z: Tensor, *, of: tuple[Tensor, Tensor, Tensor] | None = None) -> list[Tensor]:
    """The symmetric traceless part of a bᵀ, a = (x, y, z) and b = `of` (a itself if None), in five orthonormal
    components: (xx - yy)/√2, (2 zz - xx - yy)/√6, (xy + yx)/√2, (xz + zx)/√2, (yz + zy)/√2."""
    u, v, w = of or (x, y, z)
    xx, yy, zz = x * u, y * v, z * w
    return [
        S2 * (xx - yy),
        S6 * (2.0 * zz - xx - yy),
        S2 * (x * v + y * u),
        S2 * (x * w + z * u),
        S2 * (y * w + z * v),
    ]


def matrix(p: Tensor) -> tuple[Tensor, ...]:
    """xx, yy, zz, xy, xz, yz of tensors (N, 5, K), each (N, K)."""
    a, b, xy, xz, yz = p.unbind(1)
    return S2 * a - S6 * b, -S2 * a - S6 * b, 2.0 * S6 * b, S2 * xy, S2 * xz, S2 * yz


def matrix_times_vector(p: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Tensor:
    """P b, (N, 3, K)."""
    (xx, yy, zz, xy, xz, yz), (x, y, z) = p, b
    return torch.stack([xx * x + xy * y + xz * z, xy * x + yy * y + yz * z, xz * x + yz * y + zz * z], 1)


def matrix_product(p: tuple[Tensor, ...], q: tuple[Tensor, ...]) -> Tensor:
    """The symmetric traceless part of P Q, (N, 5, K); P and Q are traceless."""
    (pxx, pyy, pzz, pxy, pxz, pyz), (qxx, qyy, qzz, qxy, qxz, qyz) = p, q
    xy, xz, yz = pxy * qxy, pxz * qxz, pyz * qyz
    xx, yy, zz = pxx * qxx + xy + xz, pyy * qyy + xy + yz, pzz * qzz + xz + yz
    return torch.stack(
        [
            S2 * (xx - yy),
            S6 * (2.0 * zz - xx - yy),
            S2 * (pxz * qyz + pyz * qxz - pzz * qxy - pxy * qzz),
            S2 * (pxy * qyz + pyz * qxy - pyy * qxz - pxz * qyy),
            S2 * (pxy * qxz + pxz * qxy - pxx * qyz - pyz * qxx),
        ],
        1,
    )


def mapped(layer: nn.Module, tensors: Tensor) -> Tensor:
    """A linear map of the channels of vectors or tensors (N, ..., C), as one product with all their components as rows.

    Derivatives are often not contiguous. For those, PyTorch would multiply each atom's components by a copy of the
    weights in a compiled step, and sum gradients of the weights over atoms: a sixth of the time of the step.
    """
    rows: Tensor = layer(tensors.reshape(-1, tensors.shape[-1]))
    return rows.unflatten(0, tensors.shape[:-1])


class ManyBodyLayer(nn.Module):
    """One layer; see the module's docstring.

    Args:
        options: of the encoder.
        first: whether there are no vectors and tensors yet.
        last: whether no later layer uses tensors.
    """

    def __init__(self, options: ManyBodyOptions, *, first: bool, last: bool) -> None:
        super().__init__()
        width, k, self.l_max, self.order = options.width, options.channels, options.l_max, options.order
        self.width, self.channels, self.passed, self.last = width, k, 0 if first else options.passed, last
        self.first = first
        self.scale = 1.0 / math.sqrt(options.typical_neighbors)
        ranks = self.l_max
        self.norm = nn.LayerNorm(width)
        self.send = nn.Linear(width, width + ranks * k)
        r, c = options.radial, self.passed
        self.radial = nn.Parameter(torch.empty(r, width + ranks * k).uniform_(-1, 1) * math.sqrt(3.0 / r))
        for rank in range(1, ranks + 1):
            if c:
                setattr(self, f"down{rank}", nn.Linear(k, c, bias=False))
                setattr(self, f"up{rank}", nn.Linear(r * c, k, bias=False))
            setattr(self, f"mix{rank}", nn.Linear(k, 2 * k, bias=False))
        if c and ranks:
            self.up0 = nn.Linear(r * c, k, bias=False)
        self.receive = nn.Linear(width, ranks * k) if options.gates and ranks else None
        invariants = (0 if self.order == 2 else ranks) + (2 if self.order == 4 else 0)
        self.n_gates = 0 if last or self.order == 2 else ranks + (3 if self.order == 4 else 0)
        seen = 2 * width + (invariants + (1 if c and ranks else 0)) * k
        self.update = nn.Sequential(nn.Linear(seen, width), SiLU(), nn.Linear(width, width + self.n_gates * k))

    def forward(self, h: Tensor, u: list[Tensor], table: NeighborTable, geometry: "Geometry") -> list[Tensor]:
        """Updates scalars (N, F) and, by rank, vectors (N, 3, K) and tensors (N, 5, K)."""
        n_atoms, n, k = table.atoms, table.slots, self.channels
        hn = self.norm(h)
        rho = geometry.radial.reshape(n_atoms * n, geometry.radial.shape[2])
        message = self.send(hn).index_select(0, table.neighbor) * (rho @ self.radial)
        parts = message.split([self.width, *[k] * self.l_max], dim=1)
        sums = [parts[0].view(n_atoms, n, self.width).sum(1, dtype=h.dtype) * self.scale]
        for y, part in zip(geometry.angular, parts[1:], strict=True):
            sums.append(torch.bmm(y, part.view(n_atoms, n, k)).to(h.dtype) * self.scale)
        hidden = [hn, sums[0]]
        if self.passed and self.l_max:
            for rank, extra in enumerate(self._passed_on(u, table, geometry)):
                if rank == 0:
                    hidden.append(extra)
                else:
                    sums[rank] = sums[rank] + extra
        if not self.first:
            sums[1:] = [own + before for own, before in zip(sums[1:], u, strict=True)]
        if self.receive is not None:
            gates = self.receive(hn).split(k, dim=1)
            sums[1:] = [own * (1.0 + gate)[:, None] for own, gate in zip(sums[1:], gates, strict=True)]
        invariants, products = self._products(sums) if self.order > 2 else ([], [[]] * self.l_max)
        out = self.update(torch.cat([*hidden, *invariants], dim=1))
        found = [h + out[:, : self.width]]
        gates = out[:, self.width :].split(k, dim=1) if self.n_gates else ()
        first_gate = 0
        for own, terms in zip(sums[1:], products, strict=True):
            for term in terms if self.n_gates else []:
                own = own + gates[first_gate][:, None] * term
                first_gate += 1
            found.append(own)
        return found

    def _passed_on(self, u: list[Tensor], table: NeighborTable, geometry: "Geometry") -> list[Tensor]:
        """Contributions of the vectors and tensors of neighbours, by rank from 0, each (N, components, K)."""
        n_atoms, n, c, r = table.atoms, table.slots, self.passed, geometry.radial.shape[2]
        mixed = [mapped(getattr(self, f"down{rank}"), normalised(own)) for rank, own in enumerate(u, 1)]
        sizes = [m.shape[1] for m in mixed]
        flat = torch.cat([m.reshape(n_atoms, size * c) for m, size in zip(mixed, sizes, strict=True)], dim=1)
        sent = flat.index_select(0, table.neighbor).view(n_atoms, n, sum(sizes), c)
        toward = (sent[:, :, :3] * geometry.angular[0].transpose(1, 2)[..., None]).sum(2, keepdim=True)
        everything = torch.cat([toward.to(sent.dtype), sent], dim=2).view(n_atoms, n, (1 + sum(sizes)) * c)
        pooled = torch.bmm(geometry.radial.transpose(1, 2), everything).view(n_atoms, r, 1 + sum(sizes), c)
        by_rank = pooled.transpose(1, 2).reshape(n_atoms, 1 + sum(sizes), r * c).split([1, *sizes], dim=1)
        found = [mapped(getattr(self, f"up{rank}"), part) * self.scale for rank, part in enumerate(by_rank)]
        return [found[0].squeeze(1), *found[1:]]

    def _products(self, sums: list[Tensor]) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Invariants (N, K), and by rank the terms that the gates g multiply, in the order of g."""
        halves = [
            mapped(getattr(self, f"mix{rank}"), normalised(own)).split(self.channels, dim=2)
            for rank, own in enumerate(sums[1:], 1)
        ]
        invariants = [(one * other).sum(1) for one, other in halves]
        products = [[one] for one, _ in halves]
        if self.order == 4:
            (a, b), (p, q) = halves
            ax, bx, big_p = a.unbind(1), b.unbind(1), matrix(p)
            pb, pq = matrix_times_vector(big_p, bx), matrix_product(big_p, matrix(q))
            invariants += [(a * pb).sum(1), (q * pq).sum(1)]
            products[0].append(pb)
            products[1] += [torch.stack(rank_two(*ax, of=bx), 1), pq]
        return invariants, products


class Geometry:
    """Functions of edges in table form: radial (N, n, R), and by rank from 1 angular (N, 2 l + 1, n)."""

    def __init__(self, radial: Tensor, angular: list[Tensor]) -> None:
        self.radial, self.angular = radial, angular


class ManyBody(Encoder):
    """Stack of `ManyBodyLayer`s on an embedding of the atomic numbers."""

    Options = ManyBodyOptions
    takes_conditions = True
    takes_domains = True

    def __init__(self, options: ManyBodyOptions) -> None:
        super().__init__(options, vector_channels=options.vector_channels if options.l_max else 0)
        self.l_max = options.l_max
        self.basis = BesselBasis(options.radial, options.cutoff)
        self.embedding = element_embedding(options.elements, options.width)
        self.layers = nn.ModuleList(
            ManyBodyLayer(options, first=index == 0, last=index == options.layers - 1)
            for index in range(options.layers)
        )
        self.norm = nn.LayerNorm(options.width)

    def forward(self, graph: Graph) -> tuple[Tensor, Tensor | None]:
        """Invariant scalars (N, width) and equivariant vectors (N, 3, vector_channels); None with `l_max: 0`."""
        table = NeighborTable.of(graph)
        geometry = self._geometry(graph, table)
        features = [self.embed(graph)]
        for index, layer in enumerate(self.layers):
            if index > 0:
                features = self.exchanged(graph, *features)
            features = self.through(layer, features[0], features[1:], table, geometry)
        vectors = features[1][:, :, : self.vector_channels] if self.l_max else None
        return self.norm(features[0]), vectors

    def _geometry(self, graph: Graph, table: NeighborTable) -> Geometry:
        radial = self.basis(graph.distance) * graph.weight[:, None]
        sizes = [radial.shape[1], 3, 5][: self.l_max + 1]
        columns = [radial, graph.direction][: self.l_max + 1]
        if self.l_max == 2:
            columns.append(math.sqrt(1.5) * torch.stack(rank_two(*graph.direction.unbind(1)), 1))
        radial, *angular = table.spread(torch.cat(columns, dim=1)).split(sizes, dim=2)
        return Geometry(radial, [y.transpose(1, 2) for y in angular])
