"""A branch: the energy head and the force head of one dataset (or of several that share it)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ramify.model.kernels.activation import SiLU

ForceKind = Literal["direct", "conservative"]


SILU_GAIN = 1.6765
"""1 / sqrt(E[silu(x)²]) for x ~ N(0, 1)."""


def fully_connected(width_in: int, width: int, layers: int, width_out: int) -> nn.Sequential:
    """`layers` hidden layers of `width` units with SiLU between, then a linear map to `width_out`.

    Weights start such that signals of variance 1 keep it from layer to layer (He et al., arXiv:1502.01852, with the
    gain of SiLU). PyTorch's own start shrinks them at every layer, and with them the gradients that reach the encoder:
    a branch that sees few structures of a step then learns slowly.
    """
    steps: list[nn.Module] = []
    for index in range(layers):
        gain = 1.0 if index == 0 else SILU_GAIN
        steps += [_linear(width_in if index == 0 else width, width, gain), SiLU()]
    return nn.Sequential(*steps, _linear(width, width_out, 1.0))


def _linear(width_in: int, width_out: int, gain: float) -> nn.Linear:
    """A linear map whose outputs start with variance gain² for inputs of variance 1."""
    linear = nn.Linear(width_in, width_out)
    nn.init.normal_(linear.weight, std=gain / math.sqrt(width_in))
    nn.init.zeros_(linear.bias)
    return linear


class EnergyHead(nn.Module):
    """Energy of each atom, eV, reference energies not included; a structure's energy is their sum.

    Beside the hidden layers runs a linear path, which starts at zero: energies that add up from what the encoder knows
    of each atom are learnt through it within a few passes, also from few structures of many elements.
    """

    def __init__(self, encoder_width: int, *, layers: int, width: int) -> None:
        super().__init__()
        self.layers = fully_connected(encoder_width, width, layers, 1)
        self.linear = nn.Linear(encoder_width, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, scalars: Tensor) -> Tensor:
        """(N, F) -> (N,)."""
        energy: Tensor = self.layers(scalars) + self.linear(scalars)
        return energy.squeeze(1)


class ForceHead(nn.Module):
    """Direct forces: a combination of the encoder's vectors with gates made from its scalars (equivariant)."""

    def __init__(self, encoder_width: int, vector_channels: int, *, layers: int, width: int) -> None:
        super().__init__()
        self.layers = fully_connected(encoder_width, width, layers, vector_channels)

    def forward(self, scalars: Tensor, vectors: Tensor) -> Tensor:
        """(N, F), (N, 3, C) -> (N, 3)."""
        return torch.einsum("nxc,nc->nx", vectors, self.layers(scalars))


class Branch(nn.Module):
    """The heads of one branch, in units of its datasets' own spread, so that every branch starts alike.

    Args:
        encoder_width: scalar features per atom.
        vector_channels: vector features per atom.
        energy_head, force_head: layers and width of each.
        forces: `direct` (own head), `conservative` (-dE/dx), or None where no dataset of the branch has forces.
        energy_scale: eV; forces_scale: eV/Å. Fixed, kept in the checkpoint.
    """

    energy_scale: Tensor
    forces_scale: Tensor

    def __init__(
        self,
        encoder_width: int,
        vector_channels: int,
        *,
        energy_head: tuple[int, int],
        force_head: tuple[int, int],
        forces: ForceKind | None,
        energy_scale: float,
        forces_scale: float,
    ) -> None:
        super().__init__()
        self.forces = forces
        self.energy = EnergyHead(encoder_width, layers=energy_head[0], width=energy_head[1])
        self.force = None
        if forces == "direct":
            self.force = ForceHead(encoder_width, vector_channels, layers=force_head[0], width=force_head[1])
        self.register_buffer("energy_scale", torch.tensor(energy_scale, dtype=torch.get_default_dtype()))
        self.register_buffer("forces_scale", torch.tensor(forces_scale, dtype=torch.get_default_dtype()))
