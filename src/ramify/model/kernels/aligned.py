"""Matrix products with aligned rows: widths padded with zeros to a multiple of 8.

Matrix products load whole vector registers. If the length of rows is not a multiple of 8 numbers, most rows are
unaligned: with 866 columns a product in float32 reaches 70 % of the rate with 872, including the zeros. The zeros add
1 % to the work and do not change the result. Weights are padded where they are used, so parameters, checkpoints and
gradients keep their shapes.
"""

import torch
from torch import Tensor, nn

from ramify.model.kernels.counting import is_counting
from ramify.model.lora import weight_of

ALIGNMENT = 8
"""Row lengths are multiples of this; 16 and 32 are no faster (measured for 866 columns, AVX-512, float32, bfloat16)."""


def aligned(width: int) -> int:
    """The next multiple of `ALIGNMENT`; the width itself while operations are counted."""
    if is_counting():
        return width
    return -(-width // ALIGNMENT) * ALIGNMENT


def padded(x: Tensor, *widths: int) -> Tensor:
    """`x` with its last dimensions padded with zeros to `widths`; `x` itself where it has them already."""
    missing = [after - before for before, after in zip(x.shape[-len(widths) :], widths, strict=True)]
    if not any(missing):
        return x
    return torch.nn.functional.pad(x, [n for gap in reversed(missing) for n in (0, gap)])


def aligned_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear map (rows, inputs) -> (rows, aligned outputs), zero beyond the map's own outputs.

    Args:
        layer: the map.
        x: (rows, inputs), or padded already.
    """
    inputs, outputs = aligned(layer.in_features), aligned(layer.out_features)
    bias = None if layer.bias is None else padded(layer.bias, outputs)
    return torch.nn.functional.linear(padded(x, inputs), padded(weight_of(layer), outputs, inputs), bias)
