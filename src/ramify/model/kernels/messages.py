"""The messages of a layer on all edges: with plain operations, and in blocks that save few activations.

With a_i and b_j computed on atoms, x_ij and the radial functions r_ij on edges:
    z_ij = a_i + b_j + x_ij X,    m_ij = silu(W silu(z_ij) + w) * (r_ij R)
    M_i  = Σ_j m_ij,              g_ij = m_ij G
`blockwise` processes the edges in blocks that fit into the caches and saves only z and W silu(z) + w for the backward
pass, which recomputes the activations but not the products. Where products are less precise than sums, it also saves
the activations, with no more bytes in total. It has a first derivative only.
`plain` has derivatives of all orders, and saves seven tensors of that size. Both agree within rounding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ramify.model.kernels.activation import silu

BLOCK = 1024
"""Edges of a block on a CPU, per thread: 3.5 MB at the paper's width, so that the data of a block stay in the
third-level cache. An accelerator processes all edges at once."""


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
    """As `plain`, without derivatives in `basis`. Products have data type `products`, sums that of `basis`."""
    found: tuple[Tensor, Tensor] = _Blockwise.apply(
        of_receiver, of_sender, x, basis, w.inputs, w.hidden, w.bias, w.radial, w.gates, receiver, sender, products
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
        a, b, x_, r, inputs_, hidden_, bias_, radial_, gates_ = (_cast(t, products) for t in tensors[:9])
        both, ends = torch.cat([a, b]), torch.stack([receiver, sender + len(a)], dim=1)
        sums, found = basis.new_zeros(a.shape), a.new_empty(len(receiver), len(gates))
        with_activations = products != basis.dtype
        kept: list[Tensor] = []
        for rows in _blocks(receiver):
            # sums two rows in one pass
            z = torch.nn.functional.embedding_bag(ends[rows], both, mode="sum").addmm_(x_[rows], inputs_)
            activated = torch.nn.functional.silu(z)
            kept += [z, activated] if with_activations else [z]
            if hidden_ is not None:
                y = torch.addmm(bias_, activated, hidden_.t())
                activated = torch.nn.functional.silu(y)
                kept += [y, activated] if with_activations else [y]
            message = activated * (r[rows] @ radial_)
            torch.mm(message, gates_.t(), out=found[rows])
            sums.index_add_(0, receiver[rows], message.to(sums.dtype))
        ctx.save_for_backward(x_, r, inputs_, hidden_, radial_, gates_, receiver, sender, *kept)
        ctx.with_activations, ctx.sums = with_activations, basis.dtype
        ctx.types = of_receiver.dtype, of_sender.dtype, x.dtype
        return sums, found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sums: Tensor, grad_gates: Tensor) -> tuple[Tensor | None, ...]:
        x, r, inputs, hidden, radial, gates, receiver, sender, *kept = ctx.saved_tensors
        grad_sums_, grad_gates_ = grad_sums.to(x.dtype), grad_gates.to(x.dtype)
        grad_a, grad_b = torch.zeros_like(grad_sums), torch.zeros_like(grad_sums)
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[2] else None
        grad_inputs, grad_radial, grad_gates_weight = (
            torch.zeros_like(t, dtype=ctx.sums) for t in (inputs, radial, gates)
        )
        grad_hidden = grad_bias = None
        if hidden is not None:
            grad_hidden, grad_bias = torch.zeros_like(hidden, dtype=ctx.sums), grad_sums.new_zeros(len(hidden))
        layers = iter(_with_activations(kept, are_kept=ctx.with_activations))
        for rows in _blocks(receiver):
            z, first = next(layers)
            y, activated = (z, first) if hidden is None else next(layers)
            filters = r[rows] @ radial
            delta = grad_sums_.index_select(0, receiver[rows]).addmm_(grad_gates_[rows], gates)
            _add_product(grad_gates_weight, grad_gates_[rows].t(), activated * filters)
            _add_product(grad_radial, r[rows].t(), activated * delta)
            delta = torch.ops.aten.silu_backward(delta.mul_(filters), y)
            if grad_hidden is not None and grad_bias is not None:
                _add_product(grad_hidden, delta.t(), first)
                grad_bias.add_(delta.sum(0))
                delta = torch.ops.aten.silu_backward(delta @ hidden, z)
            _add_product(grad_inputs, x[rows].t(), delta)
            if grad_x is not None:
                torch.mm(delta, inputs.t(), out=grad_x[rows])
            delta = delta.to(grad_a.dtype)
            grad_a.index_add_(0, receiver[rows], delta)
            grad_b.index_add_(0, sender[rows], delta)
        of = (None if to is None else to.to(kind) for to, kind in zip((grad_a, grad_b, grad_x), ctx.types, strict=True))
        return *of, None, grad_inputs, grad_hidden, grad_bias, grad_radial, grad_gates_weight, None, None, None


def _with_activations(kept: list[Tensor], *, are_kept: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """The inputs and outputs of each activation; the outputs are recomputed where they were not saved."""
    if are_kept:
        yield from zip(kept[::2], kept[1::2], strict=True)
    else:
        for z in kept:
            yield z, torch.nn.functional.silu(z)


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Any:
    return None if tensor is None else tensor.detach().to(dtype)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b, with the sum in the data type of `total`."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)
