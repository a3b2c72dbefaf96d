"""Screened repulsion of nuclei at short distances, added to the energies of the network.

The universal potential of Ziegler, Biersack and Littmark (*The Stopping and Range of Ions in Solids*, Pergamon 1985,
vol. 1, eqs. 2-60 and 2-61) for a pair of nuclei Z1, Z2 at distance r:

    V(r) = k Z1 Z2 φ(r/a) / r,   a = 0.8854 a0 / (Z1^0.23 + Z2^0.23),   k = e²/(4πε0) = 14.3996 eV Å
    φ(x) = 0.18175 exp(-3.19980 x) + 0.50986 exp(-0.94229 x) + 0.28022 exp(-0.40290 x) + 0.02817 exp(-0.20162 x)

It is multiplied by a polynomial that reaches 0, with two vanishing derivatives, at the sum of the covalent radii
(Cordero et al., doi:10.1039/b801115j, from ASE), so that bonded atoms hardly feel it. There are no trained parameters.
"""

import numpy as np
import torch
from ase.data import covalent_radii
from ase.units import Bohr, Hartree
from torch import Tensor, nn

from ramify.elements import MAX_NUMBER
from ramify.model.graph import Graph
from ramify.model.radial import polynomial_envelope

SCREENING = ((0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162))
"""Amplitudes and exponents of φ."""

POWER = 6
"""p of the envelope at the sum of the covalent radii, as in Gasteiger et al., arXiv:2003.03123."""


class ZBL(nn.Module):
    """Energies of atoms: half of the screened repulsion of each of their pairs."""

    radius: Tensor
    charge_power: Tensor

    def __init__(self) -> None:
        super().__init__()
        number = torch.arange(MAX_NUMBER + 1, dtype=torch.float64)
        radii = torch.from_numpy(np.asarray(covalent_radii, np.float64)[: MAX_NUMBER + 1].copy())
        self.register_buffer("radius", radii, persistent=False)
        self.register_buffer("charge_power", number**0.23, persistent=False)

    def forward(self, graph: Graph) -> Tensor:
        """(N,) eV. An edge counts for its receiver only, times its weight, so that the energy is smooth also where
        `max_neighbors` ends a neighbourhood inside the covalent radii."""
        d = graph.distance
        one, other = (graph.numbers.index_select(0, end) for end in (graph.receiver, graph.sender))
        powers = self.charge_power.index_select(0, one) + self.charge_power.index_select(0, other)
        scaled = d * powers.to(d.dtype) / (0.8854 * Bohr)
        screening = torch.zeros_like(d)
        for amplitude, exponent in SCREENING:
            screening = screening + amplitude * torch.exp(-exponent * scaled)
        reach = (self.radius.index_select(0, one) + self.radius.index_select(0, other)).to(d.dtype)
        pair = Hartree * Bohr * (one * other).to(d.dtype) * screening / d
        half = 0.5 * pair * polynomial_envelope(d / reach, POWER) * graph.weight
        return half.new_zeros(graph.numbers.shape).index_add(0, graph.receiver, half)
