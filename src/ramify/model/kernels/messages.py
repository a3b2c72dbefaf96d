"""The messages of a layer on all edges: with plain operations, and in blocks with derivatives written by hand.

With a_i and b_j computed on atoms, x_ij and the radial functions r_ij on edges:
    z_ij = a_i + b_j + x_ij X,    y_ij = W s(z_ij) + w,    m_ij = s(y_ij) * f_ij,    f_ij = r_ij R,    s = silu
    M_i  = Σ_j m_ij,              g_ij = m_ij G
Without the second layer, y is z. With gradients M' of M and g' of g, the first derivatives are
    μ_ij = M'_i + g'_ij G,    f' = μ * s(y),    y' = μ * f * s'(y),    z' = (y' W) * s'(z)
    a'_i = Σ_j z'_ij,    b'_j = Σ_i z'_ij,    x' = z' Xᵀ,    r' = f' Rᵀ
A loss that contains forces depends on a', b', x' and r'. With its gradients in them, α, β, ξ and ρ, the tangents
    ż = α_i + β_j + ξ X,    ẏ = W (s'(z) * ż),    ḟ = ρ R,    ṁ = s'(y) * ẏ * f + s(y) * ḟ
are those of a forward pass in that direction, and the loss changes by Σ μ·ṁ. Its gradients in all inputs follow by the
chain rule; in z and y, apart from their own products, they are
    (y' W) * s''(z) * ż    and    μ * (f * s''(y) * ẏ + ḟ * s'(y))
These go back to the node of the first pass, which adds them to those that arrive there: with two derivatives, training
needs six products by W and its transpose, as plain operations do.

`blockwise` processes the edges in blocks that fit into the caches. It saves z and y, and for second derivatives y' W;
plain operations save some fifteen tensors of that size. Activations are recomputed, products are not. Where products
are less precise than sums, it also saves the activations, with no more bytes in total. Both forms agree within
rounding. `blockwise` has first derivatives in everything, and second derivatives except those in the weights alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ramify.model.kernels.activation import silu, silu_derivatives

BLOCK = 1024
"""Edges of a block on a CPU, per thread: 0.5 MB at a width of 128 and 3.5 MB at 866, so that the data of a block stay
in the second or third-level cache. An accelerator processes all edges at once."""


@dataclass(frozen=True, slots=True)
class MessageWeights:
    """Weights of the messages; F is the width.

    Attributes:
        inputs: X (I, F).
        hidden: W (F, F), (outputs, inputs) as in `nn.Linear`; None without the second layer.
        bias: w (F,).
        radial: R (radial, F).
        gates: G (K, F), (outputs, inputs).
    """

    inputs: Tensor
    hidden: Tensor | None
    bias: Tensor | None
    radial: Tensor
    gates: Tensor


def plain(
    of_receiver: Tensor,
    of_sender: Tensor,
    x: Tensor,
    basis: Tensor,
    w: MessageWeights,
    receiver: Tensor,
    sender: Tensor,
) -> tuple[Tensor, Tensor]:
    """Sums over neighbours M (N, F) and gates g (E, K); derivatives of any order that `silu` has.

    Args:
        of_receiver, of_sender: a, b (N, F).
        x: (E, I).
        basis: r (E, radial), zero at the cutoff.
        w: weights.
        receiver, sender: (E,), sorted by receiver.
    """
    z = of_receiver.index_select(0, receiver) + of_sender.index_select(0, sender) + x @ w.inputs
    message = silu(z)
    if w.hidden is not None:
        message = silu(torch.nn.functional.linear(message, w.hidden, w.bias))
    message = message * (basis @ w.radial)
    gates = torch.nn.functional.linear(message, w.gates)
    sums = basis.new_zeros(of_receiver.shape).index_add(0, receiver, message.to(basis.dtype))
    return sums, gates


def blockwise(
    of_receiver: Tensor,
    of_sender: Tensor,
    x: Tensor,
    basis: Tensor,
    w: MessageWeights,
    receiver: Tensor,
    sender: Tensor,
    products: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """As `plain`; products have data type `products`, sums that of `basis`.

    If the two differ, there are no second derivatives, and none in `basis`.
    """
    second = [] if w.hidden is None else [w.hidden, w.bias]
    sums, gates, *_ = _Messages.apply(
        products, of_receiver, of_sender, x, basis, w.inputs, w.radial, w.gates, receiver, sender, *second
    )
    return sums, gates


class _Messages(torch.autograd.Function):
    """Sums, gates, z and, with a second layer, y; z and y are results so that second derivatives can reach them."""

    @staticmethod
    def forward(ctx: Any, products: torch.dtype, *given: Tensor) -> tuple[Tensor, ...]:
        a, b, x, r, inputs, radial, gates = (t.to(products) for t in given[:7])
        receiver, sender, second = *given[7:9], [t.to(products) for t in given[9:]]
        sums_type, shape = given[3].dtype, (len(receiver), a.shape[1])
        sums, found = torch.zeros_like(a, dtype=sums_type), a.new_empty(len(receiver), len(gates))
        before = [a.new_empty(shape) for _ in range(2 if second else 1)]
        after = [a.new_empty(shape) for _ in before] if products != sums_type else []
        pairs = _Pairs(a, b, receiver, sender)
        for rows in _blocks(before[0]):
            before[0][rows] = pairs.sums(rows).addmm_(x[rows], inputs)
            activated = [torch.nn.functional.silu(before[0][rows])]
            if second:
                torch.addmm(second[1], activated[0], second[0].t(), out=before[1][rows])
                activated.append(torch.nn.functional.silu(before[1][rows]))
            for kept, values in zip(after, activated, strict=False):
                kept[rows] = values
            message = activated[-1] * (r[rows] @ radial)
            torch.mm(message, gates.t(), out=found[rows])
            sums.index_add_(0, receiver[rows], message.to(sums_type))
        ctx.save_for_backward(x, r, receiver, sender, inputs, radial, gates, *second[:1], *before, *after)
        ctx.sums, ctx.types = (a.shape, sums_type), [t.dtype for t in given[:3]]
        ctx.set_materialize_grads(False)
        return sums, found, *before

    @staticmethod
    def backward(ctx: Any, to_sums: Tensor | None, to_gates: Tensor | None, *to_before: Tensor | None) -> Any:
        tensors, (shape, sums_type) = ctx.saved_tensors, ctx.sums
        saved = _Saved.of(tensors, len(to_before))
        products, wanted = saved.r.dtype, _wanted(ctx)
        to_sums = saved.r.new_zeros(shape) if to_sums is None else to_sums.to(products)
        to_gates = saved.r.new_zeros(len(saved.r), len(saved.gates)) if to_gates is None else to_gates.to(products)
        of_weights = any(wanted[4:])
        if torch.is_grad_enabled():
            if of_weights or products != sums_type:
                raise RuntimeError("blockwise messages have no second derivatives in weights or in mixed precision")
            found = _Gradients.apply(len(to_before), to_sums, to_gates, *tensors)
            return None, *found, *[None] * (len(wanted) - 4)
        gradient = _Gradient(saved, shape, sums_type, of_basis=wanted[3], of_weights=of_weights)
        for rows in _blocks(saved.before[0]):
            gradient.add(rows, to_sums, to_gates, to_before)
        ends = [t.to(of) for t, of in zip((gradient.a, gradient.b, gradient.x), ctx.types, strict=True)]
        inputs, radial, gates, *second = gradient.weights or [None] * (len(wanted) - 6)
        return None, *ends, gradient.r, inputs, radial, gates, None, None, *second


class _Gradients(torch.autograd.Function):
    """The gradients a', b', x', r' as a function of M', g' and of what the messages saved."""

    @staticmethod
    def forward(ctx: Any, layers: int, to_sums: Tensor, to_gates: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        saved = _Saved.of(given, layers)
        gradient = _Gradient(saved, to_sums.shape, to_sums.dtype, of_basis=True, of_weights=False)
        to_first = [torch.empty_like(saved.before[0])] if layers == 2 else []
        for rows in _blocks(saved.before[0]):
            gradient.add(rows, to_sums, to_gates, [None] * layers, *(t[rows] for t in to_first))
        ctx.save_for_backward(to_sums, to_gates, *given, *to_first)
        ctx.layers = layers
        return gradient.a, gradient.b, gradient.x, gradient.r  # type: ignore[return-value]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *directions: Tensor) -> Any:
        to_sums, to_gates, *given = ctx.saved_tensors
        saved = _Saved.of(given[: 8 if ctx.layers == 1 else 10], ctx.layers)
        change = _Change(saved, to_sums, to_gates, given[-1] if ctx.layers == 2 else None, directions)
        for rows in _blocks(saved.before[0]):
            change.add(rows)
        inputs, radial, gates, *second = change.weights
        return (
            None,
            change.sums,
            change.gates,
            None,
            change.r,
            None,
            None,
            inputs,
            radial,
            gates,
            *second,
            *change.before,
        )


@dataclass(frozen=True, slots=True)
class _Saved:
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
    def of(tensors: Sequence[Tensor], layers: int) -> "_Saved":
        first, rest = tensors[:7], list(tensors[7:])
        hidden = rest.pop(0) if layers == 2 else None
        return _Saved(*first, hidden, rest[:layers], rest[layers:])

    @property
    def weights(self) -> list[Tensor]:
        return [self.inputs, self.radial, self.gates, *([] if self.hidden is None else [self.hidden])]


class _Gradient:
    """First derivatives, summed block by block.

    Attributes:
        a, b: a', b' (N, F).
        x: x' (E, I).
        r: r' (E, radial), or None.
        weights: those of X, R, G and, with a second layer, of W and w; empty if they are not needed.
    """

    def __init__(
        self, saved: _Saved, shape: torch.Size, sums_type: torch.dtype, *, of_basis: bool, of_weights: bool
    ) -> None:
        self.saved = saved
        self.a, self.b = (saved.r.new_zeros(shape, dtype=sums_type) for _ in range(2))
        self.x = torch.empty_like(saved.x)
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
            _add_product(self.weights[1], saved.r[rows].t(), to_filters)
            _add_product(self.weights[2], to_gates[rows].t(), after[-1] * filters)
        delta = torch.ops.aten.silu_backward(delta.mul_(filters), before[-1])
        if to_before[-1] is not None:
            delta += to_before[-1][rows]
        if hidden is not None:
            if self.weights:
                _add_product(self.weights[3], delta.t(), after[0])
                self.weights[4].add_(delta.sum(0))
            delta = torch.mm(delta, hidden, out=to_first)
            delta = torch.ops.aten.silu_backward(delta, before[0])
            if to_before[0] is not None:
                delta += to_before[0][rows]
        if self.weights:
            _add_product(self.weights[0], saved.x[rows].t(), delta)
        torch.mm(delta, saved.inputs.t(), out=self.x[rows])
        delta = delta.to(self.a.dtype)
        self.a.index_add_(0, saved.receiver[rows], delta)
        self.b.index_add_(0, saved.sender[rows], delta)


class _Change:
    """Gradients of Σ μ·ṁ, summed block by block; see the module's docstring.

    Attributes:
        sums, gates: those of M' (N, F) and g' (E, K).
        r: (E, radial).
        weights: those of X, R, G and, with a second layer, of W.
        before: those of z and, with a second layer, of y (E, F).
    """

    def __init__(
        self,
        saved: _Saved,
        to_sums: Tensor,
        to_gates: Tensor,
        to_first: Tensor | None,
        directions: Sequence[Tensor],
    ) -> None:
        self.saved, self.to_sums, self.to_gates, self.to_first = saved, to_sums, to_gates, to_first
        of_receiver, of_sender, self.to_x, self.to_r = directions
        self.pairs = _Pairs(of_receiver, of_sender, saved.receiver, saved.sender)
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


class _Pairs:
    """Sums a_i + b_j of values (N, F) on the atoms of each edge."""

    def __init__(self, of_receiver: Tensor, of_sender: Tensor, receiver: Tensor, sender: Tensor) -> None:
        self.both = torch.cat([of_receiver, of_sender])
        self.ends = torch.stack([receiver, sender + len(of_receiver)], dim=1)

    def sums(self, rows: slice) -> Tensor:
        """(edges, F); two rows are added in one pass."""
        return torch.nn.functional.embedding_bag(self.ends[rows], self.both, mode="sum")


def _blocks(on_edges: Tensor) -> Iterator[slice]:
    """Parts of the rows of a tensor (E, F)."""
    edges = len(on_edges)
    size = BLOCK * torch.get_num_threads() if on_edges.device.type == "cpu" else max(1, edges)
    for first in range(0, edges, size):
        yield slice(first, first + size)


def _wanted(ctx: Any) -> list[bool]:
    """Of each tensor given to the function: whether this differentiation needs its gradient.

    `ctx.needs_input_grad` says whether it has one at all: the weights do, also while only positions are differentiated.
    """
    wanted = []
    for node, _ in ctx.next_functions:
        try:
            wanted.append(node is not None and torch._C._will_engine_execute_node(node))
        except RuntimeError:  # PyTorch cannot say it of a leaf that `torch.autograd.grad` was asked for
            wanted.append(True)
    return wanted


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b, with the sum in the data type of `total`."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)
