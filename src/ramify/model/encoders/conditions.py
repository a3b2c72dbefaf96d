"""Conditions of a model (charge, spin, dataset): a modulation of the first features of every atom.

With the charge q in e, the multiplicity M (2S = M - 1 unpaired electrons) and the dataset d of the structure of atom i:

    e   = silu(q w_q + 2S w_s + D_d + b)                only the terms of the conditions of the model
    γ_i, β_i = U (t_Z(i) * e)                           t_Z: one vector per element
    h_i = h_i * (1 + γ_i) + β_i

`h_i` are the features that the encoder begins with. U is initialised with zeros, so that a new model equals that
without conditions. Features are scaled and shifted as in FiLM (Perez et al., arXiv:1709.07871); SpookyNet (Unke et al.,
Nat. Commun. 12, 7273 (2021), doi:10.1038/s41467-021-27504-0) adds charge and spin to the first features by attention
over atoms.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ramify.elements import MAX_NUMBER

FEATURES = 64
"""Size of e: enough to separate states whose charges and multiplicities differ by one."""


class Conditions(nn.Module):
    """The modulation; see the module's docstring.

    Args:
        names: of the conditions, in the order of the columns of their values.
        datasets: number of datasets, for the condition `dataset`.
        width: F, features per atom.
    """

    def __init__(self, names: Sequence[str], datasets: int, width: int) -> None:
        super().__init__()
        self.names = tuple(names)
        for name in self.names:
            if name == "dataset":
                self.dataset = nn.Embedding(datasets, FEATURES)
            else:
                self.register_parameter(name, nn.Parameter(torch.randn(FEATURES)))
        self.bias = nn.Parameter(torch.randn(FEATURES))
        self.elements = nn.Embedding(MAX_NUMBER + 1, FEATURES)
        self.modulation = nn.Parameter(torch.zeros(FEATURES, 2 * width))
        self.scale = 1.0 / math.sqrt(FEATURES)

    def forward(self, features: Tensor, numbers: Tensor, values: Tensor) -> Tensor:
        """Features (N, F), atomic numbers (N,) and values of the conditions (N, C) -> features (N, F)."""
        hidden: Tensor = self.bias
        for column, name in enumerate(self.names):
            value = values[:, column]
            if name == "dataset":
                hidden = hidden + self.dataset(value.to(torch.int64))
            else:
                number = value - 1.0 if name == "spin" else value
                hidden = hidden + number[:, None] * getattr(self, name)
        hidden = nn.functional.silu(hidden) * self.elements(numbers) * self.scale
        gain, shift = (hidden @ self.modulation).chunk(2, dim=1)
        return (features * (1.0 + gain) + shift).to(features.dtype)
