"""Distances as the encoder sees them: a radial basis and an envelope that ends smoothly."""

import math

import torch
from torch import Tensor, nn


class BesselBasis(nn.Module):
    """sqrt(2/c) sin(n π d / c) / d for n = 1..size (Gasteiger et al., arXiv:2003.03123, eq. 7), c the cutoff in Å."""

    frequency: Tensor

    def __init__(self, size: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.register_buffer("frequency", torch.arange(1, size + 1) * math.pi / cutoff, persistent=False)

    def forward(self, distance_E: Tensor) -> Tensor:
        """(E,) Å -> (E, size)."""
        d = distance_E[:, None]
        return math.sqrt(2.0 / self.cutoff) * torch.sin(d * self.frequency.to(d.dtype)) / d


def envelope(ratio: Tensor) -> Tensor:
    """Polynomial that is 1 at 0 and reaches 0 at ratio 1 with two vanishing derivatives.

    1 - 28 u⁶ + 48 u⁷ - 21 u⁸, the p = 6 case of Gasteiger et al., arXiv:2003.03123, eq. 8.
    """
    u = ratio.clamp(max=1.0)
    u6 = u**6
    return 1.0 + u6 * (-28.0 + u * (48.0 - 21.0 * u))
