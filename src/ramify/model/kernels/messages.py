"""The messages of a layer on all edges: with plain operations, and in blocks with derivatives written by hand.

With a_i and b_j computed on atoms, x_ij and the radial functions r_ij on edges:
    z_ij = a_i + b_j + x_ij X,    y_ij = W s(z_ij) + w,    m_ij = s(y_ij) * f_ij,    f_ij = r_ij R,    s = silu
    M_i  = Σ_j m_ij,              g_ij = m_ij G
Without the second layer, y is z.

`blockwise` processes the edges in blocks that fit into the caches. It saves z and y, and for second derivatives y' W;
plain operations save some fifteen tensors of that size. Activations are recomputed, products are not. Where products
are less precise than sums, it also saves the activations, with no more bytes in total. Both forms agree within
rounding. `blockwise` has first derivatives in everything, and second derivatives except those in the weights alone.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ramify.model.kernels.activation import silu
from ramify.model.kernels.message_derivatives import FirstDerivatives, Pairs, Saved, SecondDerivatives, blocks


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
        pairs = Pairs(a, b, receiver, sender)
        for rows in blocks(before[0]):
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
        saved = Saved.of(tensors, len(to_before))
        products, wanted = saved.r.dtype, _wanted(ctx)
        to_sums = saved.r.new_zeros(shape) if to_sums is None else to_sums.to(products)
        to_gates = saved.r.new_zeros(len(saved.r), len(saved.gates)) if to_gates is None else to_gates.to(products)
        of_weights = any(wanted[4:])
        if torch.is_grad_enabled():
            if of_weights or products != sums_type:
                raise RuntimeError("blockwise messages have no second derivatives in weights or in mixed precision")
            found = _Gradients.apply(len(to_before), to_sums, to_gates, *tensors)
            return None, *found, *[None] * (len(wanted) - 4)
        of_x, of_basis = wanted[2:4]
        gradient = FirstDerivatives(saved, shape, sums_type, of_x=of_x, of_basis=of_basis, of_weights=of_weights)
        for rows in blocks(saved.before[0]):
            gradient.add(rows, to_sums, to_gates, to_before)
        to = (gradient.a, gradient.b, gradient.x)
        ends = [None if t is None else t.to(kind) for t, kind in zip(to, ctx.types, strict=True)]
        weights: list[Any] = gradient.weights or [None] * (len(wanted) - 6)
        return None, *ends, gradient.r, *weights[:3], None, None, *weights[3:]


class _Gradients(torch.autograd.Function):
    """The gradients a', b', x', r' as a function of M', g' and of what the messages saved."""

    @staticmethod
    def forward(ctx: Any, layers: int, to_sums: Tensor, to_gates: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        saved = Saved.of(given, layers)
        gradient = FirstDerivatives(saved, to_sums.shape, to_sums.dtype, of_x=True, of_basis=True, of_weights=False)
        to_first = [torch.empty_like(saved.before[0])] if layers == 2 else []
        for rows in blocks(saved.before[0]):
            gradient.add(rows, to_sums, to_gates, [None] * layers, *(t[rows] for t in to_first))
        ctx.save_for_backward(to_sums, to_gates, *given, *to_first)
        ctx.layers = layers
        return gradient.a, gradient.b, gradient.x, gradient.r  # type: ignore[return-value]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *directions: Tensor) -> Any:
        to_sums, to_gates, *given = ctx.saved_tensors
        saved = Saved.of(given[: 8 if ctx.layers == 1 else 10], ctx.layers)
        change = SecondDerivatives(saved, to_sums, to_gates, given[-1] if ctx.layers == 2 else None, directions)
        for rows in blocks(saved.before[0]):
            change.add(rows)
        of_given = (None, change.r, None, None, *change.weights, *change.before)
        return None, change.sums, change.gates, *of_given


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
