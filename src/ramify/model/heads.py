"""Heads of further labels (`ramify.labels.register`): one number per structure, from the scalars of its atoms.

The heads of energies and forces are in `ramify.model.branch`; stress is a derivative.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ramify.labels import LABELS
from ramify.model.branch import fully_connected, start_at_zero


class LabelHead(Protocol):
    """Interface of a head; implementations are `torch.nn.Module`s."""

    def __call__(self, scalars: Tensor, structure: Tensor, n_atoms: Tensor) -> Tensor:
        """Predicts the label of S structures, relative to its mean and in units of its spread on the training split.

        Args:
            scalars: (N, F) of atoms.
            structure: (N,) the structure of each atom, from 0.
            n_atoms: (S,) atoms of each structure, as floats.

        Returns:
            (S,).
        """
        ...


MakeHead = Callable[[int, int, int], nn.Module]
"""(scalars per atom, layers, width of layers) -> a `LabelHead`."""


class MeanHead(nn.Module):
    """The mean of the outputs of the atoms of a structure: for intensive labels, and for totals, which are compared per
    atom. A new head predicts zero, which is the mean of the training split.

    Args:
        encoder_width: F, scalars per atom.
        layers: number of hidden layers, fully connected with SiLU.
        width: units of each.
    """

    def __init__(self, encoder_width: int, layers: int, width: int) -> None:
        super().__init__()
        self.layers = fully_connected(encoder_width, width, layers, 1)
        start_at_zero(self.layers)

    def forward(self, scalars: Tensor, structure: Tensor, n_atoms: Tensor) -> Tensor:
        """See `LabelHead`."""
        of_atom: Tensor = self.layers(scalars).squeeze(1).to(n_atoms.dtype)
        return of_atom.new_zeros(n_atoms.shape).index_add(0, structure, of_atom) / n_atoms


HEADS: dict[str, MakeHead] = {}
"""Constructors of heads by label."""


def register_head(label: str, make: MakeHead = MeanHead) -> None:
    """Registers the head of a registered label.

    Raises:
        ValueError: there is no such label, or it has another head.
    """
    if label not in LABELS:
        raise ValueError(f"label '{label}' is not registered; registered: {', '.join(LABELS)}")
    if HEADS.setdefault(label, make) is not make:
        raise ValueError(f"label '{label}' has a head already")


@dataclass(frozen=True, slots=True)
class LabelScale:
    """Statistics of a label on the training split of a branch, in its unit of errors.

    Attributes:
        mean: prediction of a new head.
        mad: mean absolute deviation from the mean, the unit of the head.
    """

    mean: float
    mad: float


class ScaledHead(nn.Module):
    """A head whose outputs are converted to the unit of the label."""

    mean: Tensor
    scale: Tensor

    def __init__(self, head: nn.Module, scale: LabelScale) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("mean", torch.tensor(scale.mean, dtype=torch.get_default_dtype()))
        self.register_buffer("scale", torch.tensor(scale.mad or 1.0, dtype=torch.get_default_dtype()))

    def forward(self, scalars: Tensor, structure: Tensor, n_atoms: Tensor) -> Tensor:
        """(S,) in the label's unit of errors."""
        found: Tensor = self.head(scalars, structure, n_atoms)
        return found.to(self.scale.dtype) * self.scale + self.mean
