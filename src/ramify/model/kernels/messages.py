"""The messages of a layer on all edges: in plain operations, and in blocks that keep next to nothing.

With a_i and b_j made on atoms, x_ij and the radial functions r_ij on edges:
    z_ij = a_i + b_j + x_ij X,    m_ij = silu(W silu(z_ij) + w) * (r_ij R)
    M_i  = Σ_j m_ij,              g_ij = m_ij G
`blockwise` goes through the edges in blocks that stay in the caches and keeps only z and W silu(z) + w for the backward
pass, which calculates all else again: activations are cheap, products are not repeated. Where products are less precise
than sums it keeps their activations too, no more bytes in all. It has a first derivative only.
`plain` has all of them, and keeps seven tensors of that size. Both are the same to rounding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ramify.model.kernels.activation import silu

BLOCK = 1024
"""Edges of a block on a CPU, for each thread: 3.5 MB at the paper's width, so that what a block works on stays in
the third-level cache. An accelerator takes all edges at once."""


@dataclass(frozen=True, slots=True)
class MessageWeights:
    """Weights of the messages; F is the width.

    Attributes:
        inputs: X (I, F).
        hidden: W (F, F), (outputs, inputs) as of `nn.Linear`, and w (F,); None to leave the second activation out.
        bias: w.
        passing: R (radial, F).
        gates: G (K, F), (outputs, inputs).
    """

    inputs: Tensor
    hidden: Tensor | None
    bias: Tensor | None
    passing: Tensor
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
        basis: r (E, radial), zero at the end of the neighbourhood.
        w: weights.
        receiver, sender: (E,), sorted by receiver.
    """
    z = of_receiver.index_select(0, receiver) + of_sender.index_select(0, sender) + x @ w.inputs
    message = silu(z)
    if w.hidden is not None:
        message = silu(torch.nn.functional.linear(message, w.hidden, w.bias))
    message = message * (basis @ w.passing)
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
    """As `plain`; `basis` must need no derivative. Products are taken in type `products`, sums in that of `basis`."""
    found: tuple[Tensor, Tensor] = _Blockwise.apply(
        of_receiver, of_sender, x, basis, w.inputs, w.hidden, w.bias, w.passing, w.gates, receiver, sender, products
    )
    return found


def _blocks(edges: Tensor) -> Iterator[slice]:
    size = BLOCK * torch.get_num_threads() if edges.device.type == "cpu" else max(1, len(edges))
    for first in range(0, len(edges), size):
        yield slice(first, first + size)


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        *tensors, products = given
        of_receiver, of_sender, x, basis, *_, gates, receiver, sender = tensors
        a, b, x_, r, inputs_, hidden_, bias_, passing_, gates_ = (_cast(t, products) for t in tensors[:9])
        both, ends = torch.cat([a, b]), torch.stack([receiver, sender + len(a)], dim=1)
        sums, found = basis.new_zeros(a.shape), a.new_empty(len(receiver), len(gates))
        with_activations = products != basis.dtype
        kept: list[Tensor] = []
        for rows in _blocks(receiver):
            # the sum of two rows in one pass
            z = torch.nn.functional.embedding_bag(ends[rows], both, mode="sum").addmm_(x_[rows], inputs_)
            activated = torch.nn.functional.silu(z)
            kept += [z, activated] if with_activations else [z]
            if hidden_ is not None:
                y = torch.addmm(bias_, activated, hidden_.t())
                activated = torch.nn.functional.silu(y)
                kept += [y, activated] if with_activations else [y]
            message = activated * (r[rows] @ passing_)
            torch.mm(message, gates_.t(), out=found[rows])
            sums.index_add_(0, receiver[rows], message.to(sums.dtype))
        ctx.save_for_backward(x_, r, inputs_, hidden_, passing_, gates_, receiver, sender, *kept)
        ctx.with_activations, ctx.sums = with_activations, basis.dtype
        ctx.types = of_receiver.dtype, of_sender.dtype, x.dtype
        return sums, found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_sums: Tensor, to_gates: Tensor) -> tuple[Tensor | None, ...]:
        x, r, inputs, hidden, passing, gates, receiver, sender, *kept = ctx.saved_tensors
        to_sums_, to_gates_ = to_sums.to(x.dtype), to_gates.to(x.dtype)
        to_a, to_b = torch.zeros_like(to_sums), torch.zeros_like(to_sums)
        to_x = torch.empty_like(x) if ctx.needs_input_grad[2] else None
        to_inputs, to_passing, to_gates_weight = (torch.zeros_like(t, dtype=ctx.sums) for t in (inputs, passing, gates))
        to_hidden = to_bias = None
        if hidden is not None:
            to_hidden, to_bias = torch.zeros_like(hidden, dtype=ctx.sums), to_sums.new_zeros(len(hidden))
        layers = iter(_with_activations(kept, are_kept=ctx.with_activations))
        for rows in _blocks(receiver):
            z, first = next(layers)
            y, activated = (z, first) if hidden is None else next(layers)
            passed = r[rows] @ passing
            delta = to_sums_.index_select(0, receiver[rows]).addmm_(to_gates_[rows], gates)
            _add_product(to_gates_weight, to_gates_[rows].t(), activated * passed)
            _add_product(to_passing, r[rows].t(), activated * delta)
            delta = torch.ops.aten.silu_backward(delta.mul_(passed), y)
            if to_hidden is not None and to_bias is not None:
                _add_product(to_hidden, delta.t(), first)
                to_bias.add_(delta.sum(0))
                delta = torch.ops.aten.silu_backward(delta @ hidden, z)
            _add_product(to_inputs, x[rows].t(), delta)
            if to_x is not None:
                torch.mm(delta, inputs.t(), out=to_x[rows])
            delta = delta.to(to_a.dtype)
            to_a.index_add_(0, receiver[rows], delta)
            to_b.index_add_(0, sender[rows], delta)
        of = (None if to is None else to.to(kind) for to, kind in zip((to_a, to_b, to_x), ctx.types, strict=True))
        return *of, None, to_inputs, to_hidden, to_bias, to_passing, to_gates_weight, None, None, None


def _with_activations(kept: list[Tensor], *, are_kept: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """What went into each activation and what came out, which is calculated again where it was not kept."""
    if are_kept:
        yield from zip(kept[::2], kept[1::2], strict=True)
    else:
        for z in kept:
            yield z, torch.nn.functional.silu(z)


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Any:
    return None if tensor is None else tensor.detach().to(dtype)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b; sums of products that are less precise than `total` are taken in its own type."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)
