"""SiLU, x σ(x), with custom first and second derivatives.

Conservative forces differentiate the network twice. PyTorch then uses about fifteen elementwise operations for each of
the two derivatives; these need one and six. Equal to `torch.nn.functional.silu` within rounding.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def _curvature_factor(x: Tensor, sigmoid: Tensor) -> Tensor:
    """2 + x (1 - 2 σ): silu'' is σ (1 - σ) times this, and sigmoid_backward(g, σ) is g σ (1 - σ) in one operation."""
    return (x + 2.0).addcmul_(x, sigmoid, value=-2.0)


def silu_derivatives(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """silu(x), silu'(x) = σ + x σ (1 - σ) and silu''(x), elementwise, without a graph."""
    sigmoid = torch.sigmoid(x)
    value, rest = x * sigmoid, 1.0 - sigmoid
    return value, torch.addcmul(sigmoid, value, rest), _curvature_factor(x, sigmoid).mul_(sigmoid).mul_(rest)


class _SiLUBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(gradient, x)
        return torch.ops.aten.silu_backward(gradient, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor]:
        gradient, x = ctx.saved_tensors
        sigmoid = torch.sigmoid(x)
        to_x = torch.ops.aten.sigmoid_backward(outer * gradient, sigmoid).mul_(_curvature_factor(x, sigmoid))
        return torch.ops.aten.silu_backward(outer, x), to_x


class _SiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.nn.functional.silu(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return _SiLUBackward.apply(gradient, x)


def silu(x: Tensor) -> Tensor:
    """x σ(x), elementwise; twice differentiable (a third derivative raises)."""
    # traced and compiled models must consist of PyTorch's own operations
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return torch.nn.functional.silu(x)
    return _SiLU.apply(x)


class SiLU(nn.Module):
    """`silu` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return silu(x)
