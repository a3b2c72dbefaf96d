"""Many-body encoder: products by components against matrices, and the layer against an independent form of it."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from ramify.errors import RamifyError
from ramify.model.encoders.many_body import ManyBody, matrix, matrix_product, matrix_times_vector, rank_two
from ramify.model.graph import Graph, build_graph
from ramify.recipe import parse_recipe

from .conftest import CUTOFF, batch_of

K = 4


def symmetric(m: Tensor) -> Tensor:
    """The symmetric traceless part of matrices (N, K, 3, 3)."""
    m = 0.5 * (m + m.mT)
    return m - torch.diagonal(m, dim1=-2, dim2=-1).mean(-1)[..., None, None] * torch.eye(3, dtype=m.dtype)


def full(p: Tensor) -> Tensor:
    """(N, 5, K) -> matrices (N, K, 3, 3)."""
    xx, yy, zz, xy, xz, yz = matrix(p)
    rows = [torch.stack(row, -1) for row in ((xx, xy, xz), (xy, yy, yz), (xz, yz, zz))]
    return torch.stack(rows, -2)


def test_products_are_those_of_matrices() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(7, 3, K, dtype=torch.float64), torch.randn(7, 3, K, dtype=torch.float64)
    p, q = torch.randn(7, 5, K, dtype=torch.float64), torch.randn(7, 5, K, dtype=torch.float64)
    vector = lambda x: x.transpose(1, 2)  # noqa: E731
    outer = vector(a)[..., :, None] * vector(b)[..., None, :]
    found = full(torch.stack(rank_two(*a.unbind(1), of=b.unbind(1)), 1))
    torch.testing.assert_close(found, symmetric(outer))
    # orthonormal: the product of components is that of matrices
    torch.testing.assert_close((p * q).sum(1), (full(p) * full(q)).sum((-1, -2)))
    times = vector(matrix_times_vector(matrix(p), b.unbind(1)))
    torch.testing.assert_close(times, (full(p) @ vector(b)[..., None]).squeeze(-1))
    torch.testing.assert_close(full(matrix_product(matrix(p), matrix(q))), symmetric(full(p) @ full(q)))


def by_edges(encoder: ManyBody, graph: Graph) -> tuple[Tensor, Tensor]:
    """The equations in the module's docstring on edges and with matrices, for all options on."""
    i, j = graph.receiver, graph.sender
    rho = encoder.basis(graph.distance) * graph.weight[:, None]
    r = graph.direction
    y2 = math.sqrt(1.5) * symmetric((r[:, :, None] * r[:, None, :])[:, None])  # (E, 1, 3, 3)
    h, v, t = encoder.embedding(graph.numbers), None, None

    def total(x: Tensor) -> Tensor:
        return x.new_zeros(len(h), *x.shape[1:]).index_add(0, i, x) / math.sqrt(15.0)

    def channels(layer: torch.nn.Linear, x: Tensor) -> Tensor:  # of (N, K, ...)
        return torch.einsum("ok,nk...->no...", layer.weight, x)

    def norm(x: Tensor) -> Tensor:
        square = x.flatten(2).square().sum(2).mean(1)
        return x / torch.sqrt(1 + square)[(...,) + (None,) * (x.ndim - 1)]

    for number, layer in enumerate(encoder.layers):
        k, hn = layer.channels, layer.norm(h)
        m0, m1, m2 = (layer.send(hn)[j] * (rho @ layer.radial)).split([encoder.width, k, k], dim=1)
        a0, a1 = total(m0), total(m1[:, :, None] * r[:, None])
        a2 = total(m2[:, :, None, None] * y2)
        hidden = [hn, a0]
        if v is not None:
            dv, dt = channels(layer.down1, norm(v))[j], channels(layer.down2, norm(t))[j]
            pool = lambda x: total(torch.einsum("er,ec...->erc...", rho, x)).flatten(1, 2)  # noqa: E731
            hidden.append(layer.up0(pool((dv * r[:, None]).sum(2))))
            a1 = a1 + v + channels(layer.up1, pool(dv))
            a2 = a2 + t + channels(layer.up2, pool(dt))
        g1, g2 = layer.receive(hn).split(k, dim=1)
        a1, a2 = a1 * (1 + g1)[:, :, None], a2 * (1 + g2)[:, :, None, None]
        a, b = channels(layer.mix1, norm(a1)).split(k, dim=1)
        p, q = channels(layer.mix2, norm(a2)).split(k, dim=1)
        pb, pq = (p @ b[..., None]).squeeze(-1), symmetric(p @ q)
        hidden += [(a * b).sum(2), (p * q).sum((2, 3)), (a * pb).sum(2), (q * pq).sum((2, 3))]
        out = layer.update(torch.cat(hidden, 1))
        h, v, t = h + out[:, : encoder.width], a1, a2
        if number < len(encoder.layers) - 1:
            # gates in the order of the weights: vectors first, then tensors
            g = out[:, encoder.width :].split(k, dim=1)
            v = v + g[0][:, :, None] * a + g[1][:, :, None] * pb
            outer = symmetric(a[..., :, None] * b[..., None, :])
            for gate, term in zip(g[2:], (p, outer, pq), strict=True):
                t = t + gate[:, :, None, None] * term
    return encoder.norm(h), v[:, : encoder.vector_channels].transpose(1, 2)


def make(**changes: object) -> ManyBody:
    torch.manual_seed(0)
    keys = {"layers": 3, "width": 12, "channels": 5, "passed": 3, "vector_channels": 4, "radial": 4, "cutoff": CUTOFF}
    encoder = ManyBody(ManyBody.Options(**keys | changes)).double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


@pytest.mark.parametrize("max_neighbors", [20, None])
def test_the_table_gives_what_sums_over_edges_give(images: list, max_neighbors: int | None) -> None:
    encoder, batch = make(max_neighbors=max_neighbors), batch_of(images, torch.float64, max_neighbors)
    graph = build_graph(batch, CUTOFF, batch.positions)
    for found, expected in zip(encoder(graph), by_edges(encoder, graph), strict=True):
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_every_part_is_used(images: list) -> None:
    """Every weight has an effect, with all options."""
    for changes in ({}, {"l_max": 1}, {"l_max": 0}, {"passed": 0}, {"gates": False}, {"body_order": 3}):
        encoder, batch = make(**changes), batch_of(images, torch.float64)
        scalars, vectors = encoder(build_graph(batch, CUTOFF, batch.positions))
        assert (vectors is None) == (encoder.vector_channels == 0) == (changes == {"l_max": 0})
        (scalars.square().sum() + (0.0 if vectors is None else vectors.square().sum())).backward()
        for name, parameter in encoder.named_parameters():
            assert parameter.grad is not None, (changes, name)
            assert parameter.grad.abs().max() > 0, (changes, name)


def test_body_order_fits_the_rank() -> None:
    with pytest.raises(ValidationError):
        ManyBody.Options(l_max=1, body_order=4)
    content = {
        "datasets": {"a": {"format": "extxyz", "path": "a.xyz"}},
        "model": {"encoder": {"kind": "many_body", "l_max": 1, "body_order": 4}},
    }
    with pytest.raises(RamifyError, match=r"model\.encoder\.body_order: 4 .*l_max of at least 2, found 1"):
        parse_recipe(content, "test")
    content["model"]["encoder"] = {"kind": "many_body", "channels": 8}
    with pytest.raises(RamifyError, match=r"model\.encoder\.vector_channels: 16 .*channels: 8"):
        parse_recipe(content, "test")
