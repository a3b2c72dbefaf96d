"""Exact errors over whole splits: additive sums and counts, independent of batches and ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ramify import labels
from ramify.elements import MAX_NUMBER, SYMBOLS
from ramify.labels import ENERGY, FORCES, LABELS

REFERENCES, LEAST_SQUARES = "reference energies", "least squares"
"""The trivial predictors of energies in `evaluation.json`: the references of the store, and plain least squares."""
TRUE, PREDICTED = "_true", "_predicted"
"""Suffixes of the names of arrays in `predictions/`, after the name of the label."""


@dataclass(slots=True)
class Sums:
    """Error sums of one label: the count, the sum of absolute errors, and the sum of squared errors."""

    count: float = 0.0
    absolute: float = 0.0
    squared: float = 0.0

    @property
    def mae(self) -> float | None:
        """Mean absolute error; None where there is no label."""
        return _mean(self.absolute, self.count)

    @property
    def rmse(self) -> float | None:
        """Root mean square error; None where there is no label."""
        return _root(_mean(self.squared, self.count))


class Errors:
    """Sums of errors over any number of structures. Merging two gives the sums over both sets of structures.

    Attributes:
        structures, atoms: numbers added, labelled or not.
        sums: by label. All sums are additive (counts are exact up to 2^53).
    """

    __slots__ = ("atoms", "structures", "sums")

    def __init__(self) -> None:
        self.structures = self.atoms = 0
        self.sums: dict[str, Sums] = {name: Sums() for name in LABELS}

    def count(self, structures: int, atoms: int) -> None:
        """Adds to the numbers of evaluated structures and atoms."""
        self.structures += structures
        self.atoms += atoms

    def add(self, label: str, error: ArrayLike, labelled: ArrayLike | None = None) -> None:
        """Adds errors of one label, in its `error_unit`.

        Args:
            label: its name.
            error: (rows, *shape of the label) prediction minus label; NaN where there is no label (or no head).
            labelled: bool of the same shape, true where there is a label. Without it, NaN means "no label"; with it, a
                NaN predicted for a labelled structure makes the result NaN and is not ignored.

        Raises:
            ValueError: a shape is wrong.
        """
        values = np.asarray(error, np.float64)
        mask = ~np.isnan(values) if labelled is None else np.asarray(labelled, np.bool_)
        if values.ndim < 1 or values.shape[1:] != LABELS[label].shape:
            raise ValueError(f"errors of {label} have shape {values.shape}, expected (rows, *{LABELS[label].shape})")
        if mask.shape != values.shape:
            raise ValueError(f"labels have shape {mask.shape}, their errors {values.shape}")
        counted, sums = values[mask], self.sums[label]
        sums.count += float(counted.size)
        sums.absolute += float(np.abs(counted).sum())
        sums.squared += float(np.square(counted).sum())

    def merge(self, other: Errors) -> None:
        """Adds the sums of `other`."""
        self.count(other.structures, other.atoms)
        for name, more in other.sums.items():
            sums = self.sums[name]
            sums.count += more.count
            sums.absolute += more.absolute
            sums.squared += more.squared

    def mae(self, label: str) -> float | None:
        """Mean absolute error in the `error_unit` of the label; None where nothing is labelled (and predicted)."""
        return self.sums[label].mae

    def rmse(self, label: str) -> float | None:
        """Root mean square error, as `mae`."""
        return self.sums[label].rmse

    def means(self) -> dict[str, float | None]:
        """All errors under their names in `evaluation.json`; labels other than energy and forces only if they are
        present."""
        there = [name for name, sums in self.sums.items() if sums.count or name in (ENERGY.name, FORCES.name)]
        maes: dict[str, float | None] = {labels.mae(name): self.mae(name) for name in there}
        return maes | {labels.rmse(name): self.rmse(name) for name in there}

    def results(self) -> dict[str, float | int | None]:
        """The errors, and the numbers of structures and atoms that they are measured on."""
        return self.means() | {"structures": self.structures, "atoms": self.atoms}

    def to_dict(self) -> dict[str, Any]:
        """The sums as plain data; `from_dict` restores them bit for bit."""
        return {
            "structures": self.structures,
            "atoms": self.atoms,
            "sums": {k: asdict(v) for k, v in self.sums.items()},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Errors:
        """Inverse of `to_dict`."""
        errors = cls()
        errors.count(content["structures"], content["atoms"])
        errors.sums |= {name: Sums(**sums) for name, sums in content["sums"].items()}
        return errors


@dataclass(frozen=True, slots=True)
class ElementErrors:
    """Errors on the atoms of one element, and on the structures that contain it."""

    atoms: int
    structures: int
    energy_mae: float | None
    """Mean over the labelled structures that contain the element, eV/atom."""
    forces_mae: float | None
    """Mean over the labelled force components on atoms of the element, eV/Å."""


def element_errors(
    numbers: NDArray[np.integer],
    n_atoms: NDArray[np.integer],
    energy_error: NDArray[np.floating],
    forces_error: NDArray[np.floating],
) -> dict[str, ElementErrors]:
    """Errors by element, in the order of atomic numbers.

    Args:
        numbers: (N,) atomic numbers.
        n_atoms: (S,) atoms of each structure.
        energy_error: (S,) eV/atom, NaN without label.
        forces_error: (N, 3) eV/Å, NaN without label.
    """
    size = MAX_NUMBER + 1
    atom_number = numbers.astype(np.int64)
    structure = np.repeat(np.arange(len(n_atoms), dtype=np.int64), n_atoms)
    held = np.unique(structure * size + atom_number)  # each pair (structure, element) once
    energy_mae, structures = _mean_by(held % size, np.abs(energy_error.astype(np.float64))[held // size])
    forces = np.abs(forces_error.astype(np.float64)).reshape(-1)
    forces_mae, atoms = _mean_by(np.repeat(atom_number, 3), forces)
    return {
        SYMBOLS[z]: ElementErrors(int(atoms[z]) // 3, int(structures[z]), energy_mae[z], forces_mae[z])
        for z in np.flatnonzero(atoms)
    }


def _mean(total: float, count: float) -> float | None:
    return float(total / count) if count else None


def _root(square: float | None) -> float | None:
    return None if square is None else math.sqrt(square)


def _mean_by(index: NDArray[np.int64], error: NDArray[np.float64]) -> tuple[list[float | None], NDArray[np.int64]]:
    """Mean of the labelled errors of each index, and the number of occurrences of the index."""
    size = MAX_NUMBER + 1
    labelled = ~np.isnan(error)
    total = np.bincount(index[labelled], error[labelled], minlength=size)
    count = np.bincount(index[labelled], minlength=size)
    return [_mean(t, c) for t, c in zip(total, count, strict=True)], np.bincount(index, minlength=size)
