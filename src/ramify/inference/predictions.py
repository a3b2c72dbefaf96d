"""Predictions of a branch: `Prediction` for one structure, `Predictions` for many."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction of a branch for one structure of n atoms.

    Attributes:
        energy: eV, the total energy on the scale of the branch's dataset (reference energies added).
        forces: (n, 3) eV/Å; None if the branch has no force head.
        stress: (3, 3) eV/Å³, tension positive; None without periodicity or with direct forces.
        warning: reason to doubt the prediction; empty if there is none.
        labels: further labels of the branch by name, in their units of errors (`ramify.labels`).
        energy_std: eV, standard deviation of the energy; None without error bars.
        forces_std: (n, 3) eV/Å, of the forces; None unless requested.
    """

    energy: float
    forces: Floats | None
    stress: Floats | None
    warning: str = ""
    labels: Mapping[str, float] = field(default_factory=dict)
    energy_std: float | None = None
    forces_std: Floats | None = None


@dataclass(frozen=True)
class Predictions:
    """Predictions of a branch for S structures with N atoms in total; NaN for structures without a prediction.

    Attributes:
        n_atoms: (S,).
        energy: (S,) eV, total energies (reference energies added).
        forces_of_atoms: (N, 3) eV/Å; None if the branch has no force head.
        stress: (S, 3, 3) eV/Å³, tension positive; NaN without periodicity or with direct forces.
        refused: reason and detail for each structure without a prediction, by index.
        warnings: reasons to doubt a prediction, by index.
        labels: further labels of the branch by name, (S,) in their units of errors.
        energy_std: (S,) eV, standard deviations of the energies; None without error bars.
        forces_std_of_atoms: (N, 3) eV/Å, of the forces; None unless requested.
    """

    n_atoms: NDArray[np.int64]
    energy: Floats
    forces_of_atoms: Floats | None
    stress: Floats
    refused: Mapping[int, tuple[str, str]]
    warnings: Mapping[int, str]
    labels: Mapping[str, Floats] = field(default_factory=dict)
    energy_std: Floats | None = None
    forces_std_of_atoms: Floats | None = None

    def __len__(self) -> int:
        return len(self.energy)

    @cached_property
    def forces(self) -> list[Floats] | None:
        """(n, 3) eV/Å for each structure; None if the branch has no force head."""
        return self._by_structure(self.forces_of_atoms)

    @cached_property
    def forces_std(self) -> list[Floats] | None:
        """(n, 3) eV/Å for each structure; None unless requested."""
        return self._by_structure(self.forces_std_of_atoms)

    def _by_structure(self, of_atoms: Floats | None) -> list[Floats] | None:
        if of_atoms is None:
            return None
        return np.split(of_atoms, np.cumsum(self.n_atoms)[:-1]) if len(self) else []

    def __getitem__(self, index: int) -> Prediction | None:
        """The prediction for one structure; None if it was refused."""
        index = range(len(self))[index]
        if index in self.refused:
            return None
        stress = self.stress[index]
        return Prediction(
            energy=float(self.energy[index]),
            forces=None if self.forces is None else self.forces[index],
            stress=None if np.isnan(stress).any() else stress,
            warning=self.warnings.get(index, ""),
            labels={name: float(values[index]) for name, values in self.labels.items()},
            energy_std=None if self.energy_std is None else float(self.energy_std[index]),
            forces_std=None if self.forces_std is None else self.forces_std[index],
        )

    def __iter__(self) -> Iterator[Prediction | None]:
        return (self[index] for index in range(len(self)))
