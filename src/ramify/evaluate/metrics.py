"""Exact errors over whole splits: sums and counts that add up, so that batches and ranks leave no trace."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ramify.elements import MAX_NUMBER, SYMBOLS

REFERENCES, LEAST_SQUARES = "reference energies", "least squares"
"""The trivial predictors of energies, as `evaluation.json` calls them: the store's own, and plain ones."""


class Errors:
    """Sums of errors over any number of structures; two of them merge into what one would have gathered alone.

    Attributes:
        totals: (11,) float64: structures, atoms; labelled energies, sum |e|, sum e²; the same three of force components
            and of stress components. Everything is additive (counts are exact up to 2^53), so a SUM over ranks of this
            vector is the error over all of them: `Errors(reduced)`.
    """

    __slots__ = ("totals",)

    def __init__(self, totals: ArrayLike | None = None) -> None:
        self.totals = np.zeros(11) if totals is None else np.array(totals, np.float64)
        if self.totals.shape != (11,):
            raise ValueError(f"totals have shape {self.totals.shape}, expected (11,)")

    def add(
        self,
        energy_error_per_atom: ArrayLike,
        forces_error: ArrayLike,
        stress_error: ArrayLike | None = None,
        *,
        energy_labelled: ArrayLike | None = None,
        forces_labelled: ArrayLike | None = None,
        stress_labelled: ArrayLike | None = None,
    ) -> None:
        """Adds structures to the sums.

        Args:
            energy_error_per_atom: (S,) prediction minus label, eV/atom; NaN where there is no label (or no head).
            forces_error: (N, 3) prediction minus label, eV/Å; NaN where there is no label, counted per component.
            stress_error: (S, 3, 3) prediction minus label, eV/Å³; all nine components count; None where nobody asked.
            energy_labelled: (S,) bool, which energies have a label. Without it, NaN means "no label"; with it, a NaN
                that a broken model predicts for a labelled structure makes the result NaN instead of vanishing.
            forces_labelled, stress_labelled: (N, 3) and (S, 3, 3) bool, the same for components of forces and stress.

        Raises:
            ValueError: a shape is wrong.
        """
        energy = np.asarray(energy_error_per_atom, np.float64)
        forces = np.asarray(forces_error, np.float64)
        if energy.ndim != 1 or forces.ndim != 2 or forces.shape[1] != 3:
            raise ValueError(f"errors have shapes {energy.shape} and {forces.shape}, expected (S,) and (N, 3)")
        self.totals[:2] += len(energy), len(forces)
        self.totals[2:5] += _sums(energy, energy_labelled)
        self.totals[5:8] += _sums(forces, forces_labelled)
        if stress_error is not None:
            stress = np.asarray(stress_error, np.float64)
            if stress.shape != (len(energy), 3, 3):
                raise ValueError(f"stress errors have shape {stress.shape}, expected ({len(energy)}, 3, 3)")
            self.totals[8:11] += _sums(stress, stress_labelled)

    def merge(self, other: Errors) -> None:
        """Adds everything that `other` has gathered."""
        self.totals += other.totals

    @property
    def structures(self) -> int:
        """Structures added, labelled or not."""
        return int(self.totals[0])

    @property
    def atoms(self) -> int:
        """Atoms added, labelled or not."""
        return int(self.totals[1])

    @property
    def energy_mae(self) -> float | None:
        """Mean absolute error of the energy, eV/atom; None where no energy is labelled."""
        return _mean(self.totals[3], self.totals[2])

    @property
    def energy_rmse(self) -> float | None:
        """Root mean square error of the energy, eV/atom; None where no energy is labelled."""
        return _root(_mean(self.totals[4], self.totals[2]))

    @property
    def forces_mae(self) -> float | None:
        """Mean absolute error of a force component, eV/Å; None where no force is labelled."""
        return _mean(self.totals[6], self.totals[5])

    @property
    def forces_rmse(self) -> float | None:
        """Root mean square error of a force component, eV/Å; None where no force is labelled."""
        return _root(_mean(self.totals[7], self.totals[5]))

    @property
    def stress_mae(self) -> float | None:
        """Mean absolute error of a stress component, eV/Å³; None where no stress is labelled and predicted."""
        return _mean(self.totals[9], self.totals[8])

    @property
    def stress_rmse(self) -> float | None:
        """Root mean square error of a stress component, eV/Å³; None where no stress is labelled and predicted."""
        return _root(_mean(self.totals[10], self.totals[8]))

    def means(self) -> dict[str, float | None]:
        """All errors under the names that `evaluation.json` uses; those of stress only where there are any."""
        found = {
            "energy_mae": self.energy_mae,
            "forces_mae": self.forces_mae,
            "energy_rmse": self.energy_rmse,
            "forces_rmse": self.forces_rmse,
        }
        return found if not self.totals[8] else found | {"stress_mae": self.stress_mae, "stress_rmse": self.stress_rmse}

    def results(self) -> dict[str, float | int | None]:
        """The errors, and how much they were measured on."""
        return self.means() | {"structures": self.structures, "atoms": self.atoms}


@dataclass(frozen=True, slots=True)
class ElementErrors:
    """Errors on the atoms of one element, and on the structures that hold it."""

    atoms: int
    structures: int
    energy_mae: float | None
    """Mean over the labelled structures that hold the element, eV/atom."""
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
    held = np.unique(structure * size + atom_number)  # each pair (structure, element in it) once
    energy_mae, structures = _mean_by(held % size, np.abs(energy_error.astype(np.float64))[held // size])
    forces = np.abs(forces_error.astype(np.float64)).reshape(-1)
    forces_mae, atoms = _mean_by(np.repeat(atom_number, 3), forces)
    return {
        SYMBOLS[z]: ElementErrors(int(atoms[z]) // 3, int(structures[z]), energy_mae[z], forces_mae[z])
        for z in np.flatnonzero(atoms)
    }


def _sums(error: NDArray[np.float64], labelled: ArrayLike | None) -> tuple[float, float, float]:
    mask = ~np.isnan(error) if labelled is None else np.asarray(labelled, np.bool_)
    if mask.shape != error.shape:
        raise ValueError(f"labels have shape {mask.shape}, their errors {error.shape}")
    counted = error[mask]
    return float(counted.size), float(np.abs(counted).sum()), float(np.square(counted).sum())


def _mean(total: float, count: float) -> float | None:
    return float(total / count) if count else None


def _root(square: float | None) -> float | None:
    return None if square is None else math.sqrt(square)


def _mean_by(index: NDArray[np.int64], error: NDArray[np.float64]) -> tuple[list[float | None], NDArray[np.int64]]:
    """Mean of the labelled errors of each index, and how often the index occurs at all."""
    size = MAX_NUMBER + 1
    labelled = ~np.isnan(error)
    total = np.bincount(index[labelled], error[labelled], minlength=size)
    count = np.bincount(index[labelled], minlength=size)
    return [_mean(t, c) for t, c in zip(total, count, strict=True)], np.bincount(index, minlength=size)
