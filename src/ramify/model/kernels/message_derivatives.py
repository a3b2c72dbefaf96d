"""First and second derivatives of the messages of a layer, in blocks of edges; `messages` defines the symbols.

With gradients M' of M and g' of g, the first derivatives are
    μ_ij = M'_i + g'_ij G,    f' = μ * s(y),    y' = μ * f * s'(y),    z' = (y' W) * s'(z)
    a'_i = Σ_j z'_ij,    b'_j = Σ_i z'_ij,    x' = z' Xᵀ,    r' = f' Rᵀ
A loss that contains forces depends on a', b', x' and r'. With its gradients in them, α, β, ξ and ρ, the tangents
    ż = α_i + β_j + ξ X,    ẏ = W (s'(z) * ż),    ḟ = ρ R,    ṁ = s'(y) * ẏ * f + s(y) * ḟ
are those of a forward pass in that direction, and the loss changes by Σ μ·ṁ. Its gradients in all inputs follow by the
chain rule; in z and y, apart from their own products, they are
    (y' W) * s''(z) * ż    and    μ * (f * s''(y) * ẏ + ḟ * s'(y))
These go back to the node of the first pass, which adds them to those that arrive there: with two derivatives, training
needs six products by W and its transpose, as plain operations do.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.model.kernels.activation import silu_derivatives

BLOCK = 1024
"""Edges of a block on a CPU, per thread: 0.5 MB at a width of 128 and 3.5 MB at 866, so that the data of a block stay
in the second or third-level cache. An accelerator processes all edges at once."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What derivatives need; `after` is s(z) and s(y), or empty where they are recomputed."""

    x: Tensor
    r: Tensor
    receiver: Tensor
    sender: Tensor
    inputs: Tensor
    radial: Tensor
    gates: Tensor
    hidden: Tensor | None
    before: list[Tensor]
    after: list[Tensor]

    @staticmethod
    def of(tensors: Sequence[Tensor], layers: int) -> "Saved":
        x, r, receiver, sender, inputs, radial, gates, *rest = tensors
        hidden = rest.pop(0) if layers == 2 else None
        return Saved(x, r, receiver, sender, inputs, radial, gates, hidden, rest[:layers], rest[layers:])

    @property
    def weights(self) -> list[Tensor]:
        return [self.inputs, self.radial, self.gates, *([] if self.hidden is None else [self.hidden])]


class FirstDerivatives:
    """First derivatives, summed block by block.

    Attributes:
        a, b: a', b' (N, F).
        x, r: x' (E, I) and r' (E, radial), or None if they are not needed.
        weights: those of X, R, G and, with a second layer, of W and w; empty if they are not needed.
    """

    def __init__(
        self, saved: Saved, shape: torch.Size, sums_type: torch.dtype, *, of_x: bool, of_basis: bool, of_weights: bool
    ) -> None:
        self.saved = saved
        self.a, self.b = (saved.r.new_zeros(shape, dtype=sums_type) for _ in range(2))
        self.x = torch.empty_like(saved.x) if of_x else None
        self.r = torch.empty_like(saved.r) if of_basis else None
        self.weights = [torch.zeros_like(w, dtype=sums_type) for w in saved.weights] if of_weights else []
        if of_weights and saved.hidden is not None:
            self.weights.append(self.a.new_zeros(shape[1]))

    def add(
        self,
        rows: slice,
        to_sums: Tensor,
        to_gates: Tensor,
        to_before: Sequence[Tensor | None],
        to_first: Tensor | None = None,
    ) -> None:
        """Adds a block.

        Args:
            rows: the edges.
            to_sums, to_gates: M' (N, F) and g' (E, K).
            to_before: further gradients of z and y (E, F).
            to_first: receives y' W of the block.
        """
        saved, hidden = self.saved, self.saved.hidden
        before = [t[rows] for t in saved.before]
        after = [t[rows] for t in saved.after] or [torch.nn.functional.silu(t) for t in before]
        filters = saved.r[rows] @ saved.radial
        delta = to_sums.index_select(0, saved.receiver[rows]).addmm_(to_gates[rows], saved.gates)
        if self.r is not None or self.weights:
            to_filters = after[-1] * delta
        if self.r is not None:
            torch.mm(to_filters, saved.radial.t(), out=self.r[rows])
        if self.weights:
            add_product(self.weights[1], saved.r[rows].t(), to_filters)
            add_product(self.weights[2], to_gates[rows].t(), after[-1] * filters)
        delta = torch.ops.aten.silu_backward(delta.mul_(filters), before[-1])
        if to_before[-1] is not None:
            delta += to_before[-1][rows]
        if hidden is not None:
            if self.weights:
                add_product(self.weights[3], delta.t(), after[0])
                self.weights[4].add_(delta.sum(0))
            delta = torch.mm(delta, hidden, out=to_first)
            delta = torch.ops.aten.silu_backward(delta, before[0])
            if to_before[0] is not None:
                delta += to_before[0][rows]
        if self.weights:
            add_product(self.weights[0], saved.x[rows].t(), delta)
        if self.x is not None:
            torch.mm(delta, saved.inputs.t(), out=self.x[rows])
        delta = delta.to(self.a.dtype)
        self.a.index_add_(0, saved.receiver[rows], delta)
        self.b.index_add_(0, saved.sender[rows], delta)


class SecondDerivatives:
    """Gradients of Σ μ·ṁ, summed block by block; see the module's docstring.

    Attributes:
        sums, gates: those of M' (N, F) and g' (E, K).
        r: (E, radial).
        weights: those of X, R, G and, with a second layer, of W.
        before: those of z and, with a second layer, of y (E, F).
    """

    def __init__(
        self,
        saved: Saved,
        to_sums: Tensor,
        to_gates: Tensor,
        to_first: Tensor | None,
        directions: Sequence[Tensor],
    ) -> None:
        self.saved, self.to_sums, self.to_gates, self.to_first = saved, to_sums, to_gates, to_first
        of_receiver, of_sender, self.to_x, self.to_r = directions
        self.pairs = Pairs(of_receiver, of_sender, saved.receiver, saved.sender)
        self.sums, self.gates, self.r = torch.zeros_like(to_sums), torch.empty_like(to_gates), torch.empty_like(saved.r)
        self.weights = [torch.zeros_like(w) for w in saved.weights]
        self.before = [torch.empty_like(t) for t in saved.before]

    def add(self, rows: slice) -> None:
        """Adds the edges `rows`."""
        saved, hidden = self.saved, self.saved.hidden
        r, to_gates, to_r, to_x = saved.r[rows], self.to_gates[rows], self.to_r[rows], self.to_x[rows]
        filters, moved_filters = r @ saved.radial, to_r @ saved.radial
        mu = self.to_sums.index_select(0, saved.receiver[rows]).addmm_(to_gates, saved.gates)
        moved = self.pairs.sums(rows).addmm_(to_x, saved.inputs)  # of z
        value, slope, curvature = silu_derivatives(saved.before[-1][rows])
        to_y = mu * filters
        if hidden is not None and self.to_first is not None:
            _, first_slope, first_curvature = silu_derivatives(saved.before[0][rows])
            to_first = self.to_first[rows]
            torch.mul(first_curvature.mul_(moved), to_first, out=self.before[0][rows])
            to_z = first_slope * to_first
            moved = moved.mul_(first_slope)
            self.weights[3].addmm_((to_y * slope).t(), moved)
            moved = moved @ hidden.t()  # of y
        else:
            to_z = to_y * slope
        self.weights[0].addmm_(to_x.t(), to_z)
        torch.mul(curvature.mul_(moved), to_y, out=self.before[-1][rows])
        self.before[-1][rows].addcmul_(mu * moved_filters, slope)
        moved = moved.mul_(slope)  # of s(y)
        message = (moved * filters).addcmul_(value, moved_filters)
        self.sums.index_add_(0, saved.receiver[rows], message)
        torch.mm(message, saved.gates.t(), out=self.gates[rows])
        self.weights[2].addmm_(to_gates.t(), message)
        moved = moved.mul_(mu)
        torch.mm(moved, saved.radial.t(), out=self.r[rows])
        self.weights[1].addmm_(r.t(), moved).addmm_(to_r.t(), value.mul_(mu))


class Pairs:
    """Sums a_i + b_j of values (N, F) on the atoms of each edge."""

    def __init__(self, of_receiver: Tensor, of_sender: Tensor, receiver: Tensor, sender: Tensor) -> None:
        self.both = torch.cat([of_receiver, of_sender])
        self.ends = torch.stack([receiver, sender + len(of_receiver)], dim=1)

    def sums(self, rows: slice) -> Tensor:
        """(edges, F); two rows are added in one pass."""
        return torch.nn.functional.embedding_bag(self.ends[rows], self.both, mode="sum")


def blocks(on_edges: Tensor) -> Iterator[slice]:
    """Parts of the rows of a tensor (E, F)."""
    edges = len(on_edges)
    size = BLOCK * torch.get_num_threads() if on_edges.device.type == "cpu" else max(1, edges)
    for first in range(0, edges, size):
        yield slice(first, first + size)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b, with the sum in the data type of `total`."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)
