"""Heads of further labels (`ramify.labels.register`): one number by structure, from the scalars of its atoms.

Energies and forces have heads of their own (`ramify.model.branch`), stress is a derivative.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ramify.labels import LABELS
from ramify.model.branch import fully_connected, start_at_zero


class LabelHead(Protocol):
    """What a head does; it is a `torch.nn.Module`."""

    def __call__(self, scalars: Tensor, structure: Tensor, n_atoms: Tensor) -> Tensor:
        """Of S structures, in units of the label's spread around its mean, both of the training split.

        Args:
            scalars: (N, F) of atoms.
            structure: (N,) the structure of each atom, from 0.
            n_atoms: (S,) atoms of each structure, as floats.

        Returns:
            (S,).
        """
        ...


MakeHead = Callable[[int, int, int], nn.Module]
"""(F scalars of an atom, layers, their width) -> a `LabelHead`."""


class MeanHead(nn.Module):
    """The mean over the atoms of a structure of what layers make of each: for labels that do not grow with its size,
    and for totals, which are compared by atom. A fresh head predicts zero, the mean of the training split.

    Args:
        encoder_width: F, scalars of an atom.
        layers: fully connected, with SiLU between.
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
"""By label, what makes its head."""


def register_head(label: str, make: MakeHead = MeanHead) -> None:
    """Gives a registered label its head.

    Raises:
        ValueError: no such label, or it has another head.
    """
    if label not in LABELS:
        raise ValueError(f"label '{label}' is not registered; registered: {', '.join(LABELS)}")
    if HEADS.setdefault(label, make) is not make:
        raise ValueError(f"label '{label}' has a head already")


@dataclass(frozen=True, slots=True)
class LabelScale:
    """A label on the training split of a branch, in its unit of errors.

    Attributes:
        mean: what a fresh head predicts.
        mad: mean absolute deviation from it, the unit that the head works in.
    """

    mean: float
    mad: float


class ScaledHead(nn.Module):
    """A head whose numbers are turned into the unit of the label."""

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
