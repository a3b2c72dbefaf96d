"""A branch: the energy head and the force head of one dataset (or of several that share it)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ramify.model.kernels.activation import SiLU, silu
from ramify.model.lora import weight_of

ForceKind = Literal["direct", "conservative"]


SILU_GAIN = 1.6765
"""1 / sqrt(E[silu(x)²]) for x ~ N(0, 1)."""


def fully_connected(width_in: int, width: int, layers: int, width_out: int) -> nn.Sequential:
    """`layers` hidden layers of `width` units with SiLU, then a linear map to `width_out`.

    The initialisation preserves signals of variance 1 through all layers (He et al., arXiv:1502.01852, with the gain of
    SiLU). PyTorch's default initialisation reduces them at every layer, and with them the gradients of the encoder: a
    branch with few structures in a step then learns slowly.
    """
    steps: list[nn.Module] = []
    for index in range(layers):
        gain = 1.0 if index == 0 else SILU_GAIN
        steps += [_linear(width_in if index == 0 else width, width, gain), SiLU()]
    return nn.Sequential(*steps, _linear(width, width_out, 1.0))


def _linear(width_in: int, width_out: int, gain: float) -> nn.Linear:
    """A linear map, initialised so that inputs of variance 1 give outputs of variance gain²."""
    linear = nn.Linear(width_in, width_out)
    nn.init.normal_(linear.weight, std=gain / math.sqrt(width_in))
    nn.init.zeros_(linear.bias)
    return linear


def start_at_zero(layers: nn.Sequential) -> None:
    """Initialises the last layer with zeros, so that a new head predicts zero; the layers before it get gradients from
    the second step on, when the last layer is no longer zero."""
    last = layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(rows, weight, bias) -> the linear map applied to the rows."""


class EnergyHead(nn.Module):
    """Energy of each atom, eV, without reference energies; the energy of a structure is their sum.

    A linear path in parallel to the hidden layers learns energies that are linear in the features of the atoms within a
    few passes, also from few structures with many elements. Both paths end in weights that are initialised with zeros,
    so that a new head predicts the reference energies, with the error of the trivial predictor.
    """

    def __init__(self, encoder_width: int, *, layers: int, width: int) -> None:
        super().__init__()
        self.layers = fully_connected(encoder_width, width, layers, 1)
        start_at_zero(self.layers)
        self.linear = nn.Linear(encoder_width, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def start_at(self, value: float) -> None:
        """Sets the prediction of a new head for every atom, in its unit."""
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.constant_(last.bias, value)

    def forward(self, scalars: Tensor) -> Tensor:
        """(N, F) -> (N,)."""
        maps = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        weights, biases = [weight_of(layer) for layer in maps], [layer.bias for layer in maps]
        return _atom_energies(scalars, weights, biases, weight_of(self.linear), nn.functional.linear)

    def last_features(self, scalars: Tensor) -> Tensor:
        """(N, F) -> (N, D): the inputs of the weights in which the energy is linear, which are those of the last layer
        (units of its width), of the linear path (F), and of the bias (1)."""
        return torch.cat([self.layers[:-1](scalars), scalars, torch.ones_like(scalars[:, :1])], 1)

    @staticmethod
    def stacked(heads: Sequence["EnergyHead"], scales: Sequence[Tensor], trained: Sequence[bool]) -> "StackedHeads":
        """Stacks heads of equal shapes, for compiled programs that do not depend on the branches of a batch.

        Args:
            heads: B heads.
            scales: () eV of each.
            trained: whether each head gets a gradient; the gradient of the others stays None.
        """
        maps = [[layer for layer in head.layers if isinstance(layer, nn.Linear)] for head in heads]

        def stack(tensors: Sequence[Tensor]) -> Tensor:
            return torch.stack([t if wanted else t.detach() for t, wanted in zip(tensors, trained, strict=True)])

        depth = range(len(maps[0]))
        return StackedHeads(
            weights=tuple(stack([weight_of(of[k]) for of in maps]) for k in depth),
            biases=tuple(stack([of[k].bias for of in maps]) for k in depth),
            linear=stack([weight_of(head.linear) for head in heads]),
            scale=torch.stack(list(scales)),
        )


@dataclass(frozen=True, slots=True)
class StackedHeads:
    """The energy heads of B branches; created by `EnergyHead.stacked`.

    Attributes:
        weights, biases: of the layers, (B, outputs, inputs) and (B, outputs).
        linear: of the linear path, (B, 1, F).
        scale: (B,) eV.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    linear: Tensor
    scale: Tensor

    def __call__(self, scalars: Tensor, tile_branch: Tensor) -> Tensor:
        """Scalars (N, F) in tiles with branches (K,) -> energies (N,), eV; a single branch needs no tiles."""
        if len(self.scale) == 1:
            weights, biases = [w[0] for w in self.weights], [b[0] for b in self.biases]
            energy = _atom_energies(scalars, weights, biases, self.linear[0], nn.functional.linear)
            return energy.to(self.scale.dtype) * self.scale

        def product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            of_tile = weight.index_select(0, tile_branch).transpose(1, 2)
            if bias is None:
                return torch.bmm(rows, of_tile)
            return torch.baddbmm(bias.index_select(0, tile_branch)[:, None], rows, of_tile)

        tiles = scalars.view(len(tile_branch), -1, scalars.shape[1])
        energy = _atom_energies(tiles, self.weights, self.biases, self.linear, product)
        return (energy.to(self.scale.dtype) * self.scale.index_select(0, tile_branch)[:, None]).view(-1)


def _atom_energies(
    scalars: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], linear: Tensor, product: Product
) -> Tensor:
    """The forward pass of energy heads, for single and for stacked weights: (..., F) -> (...)."""
    x = scalars
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = product(silu(x) if index else x, weight, bias)
    return (x + product(scalars, linear, None)).squeeze(-1)


class ForceHead(nn.Module):
    """Direct forces: a linear combination of the encoder's vectors with coefficients from its scalars (equivariant).

    A new head predicts zero, with the error of the trivial predictor.
    """

    def __init__(self, encoder_width: int, vector_channels: int, *, layers: int, width: int) -> None:
        super().__init__()
        self.layers = fully_connected(encoder_width, width, layers, vector_channels)
        start_at_zero(self.layers)

    def last_features(self, scalars: Tensor) -> Tensor:
        """(N, F) -> (N, H): the inputs of the last layer, and 1 for its bias."""
        return torch.cat([self.layers[:-1](scalars), scalars.new_ones(len(scalars), 1)], 1)

    def forward(self, scalars: Tensor, vectors: Tensor) -> Tensor:
        """(N, F), (N, 3, C) -> (N, 3)."""
        return torch.einsum("nxc,nc->nx", vectors, self.layers(scalars))


class Branch(nn.Module):
    """The heads of one branch, in units of the spread of its datasets, so that all branches have similar scales.

    Args:
        encoder_width: scalar features per atom.
        vector_channels: vector features per atom.
        energy_head, force_head: layers and width of each.
        forces: `direct` (own head), `conservative` (-dE/dx), or None where no dataset of the branch has forces.
        energy_scale: eV; forces_scale: eV/Å. Fixed, kept in the checkpoint.
        energy_mean: eV/atom, prediction of a new head.
        labels: heads of further labels by name, `ramify.model.heads.ScaledHead`.
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
        energy_mean: float = 0.0,
        labels: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.forces = forces
        self.energy = EnergyHead(encoder_width, layers=energy_head[0], width=energy_head[1])
        if energy_mean:
            self.energy.start_at(energy_mean / energy_scale)
        self.force = None
        if forces == "direct":
            self.force = ForceHead(encoder_width, vector_channels, layers=force_head[0], width=force_head[1])
        self.labels = nn.ModuleDict(labels or {})
        self.register_buffer("energy_scale", torch.tensor(energy_scale, dtype=torch.get_default_dtype()))
        self.register_buffer("forces_scale", torch.tensor(forces_scale, dtype=torch.get_default_dtype()))

    def atom_energies(self, scalars: Tensor) -> Tensor:
        """(N, F) -> (N,) eV, in at least float32 so that sums over atoms keep their precision."""
        energy: Tensor = self.energy(scalars)
        return energy.to(self.energy_scale.dtype) * self.energy_scale

    def direct_forces(self, scalars: Tensor, vectors: Tensor) -> Tensor:
        """(N, F), (N, 3, C) -> (N, 3) eV/Å, from the force head, which must exist."""
        assert self.force is not None
        forces: Tensor = self.force(scalars, vectors)
        return forces.to(self.forces_scale.dtype) * self.forces_scale
