"""Functions of distances: a radial basis and an envelope that vanishes smoothly at the cutoff."""

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


ENVELOPE_POWER = 12
"""p of `envelope`. With `max_neighbors: 20` the adaptive cutoffs of crystals are slightly beyond the second shell,
whose weight is then 0.10 in nickel and 0.38 in molybdenum with p = 6, but 0.34 and 0.78 with p = 12."""


def envelope(ratio: Tensor) -> Tensor:
    """The envelope of all edges, see `polynomial_envelope`."""
    return polynomial_envelope(ratio, ENVELOPE_POWER)


def polynomial_envelope(ratio: Tensor, p: int) -> Tensor:
    """Polynomial that is 1 at 0 and reaches 0 at ratio 1 with two vanishing derivatives.

    1 - (p + 1)(p + 2)/2 u^p + p(p + 2) u^(p + 1) - p(p + 1)/2 u^(p + 2), Gasteiger et al., arXiv:2003.03123, eq. 8.
    """
    u = ratio.clamp(max=1.0)
    return 1.0 + u**p * (-(p + 1) * (p + 2) / 2 + u * (p * (p + 2) - u * (p * (p + 1) / 2)))
