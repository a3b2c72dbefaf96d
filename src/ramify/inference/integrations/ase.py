"""`Calculator`: a branch as an ASE calculator."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from ramify.errors import RamifyError
from ramify.inference.memory import available_memory, readable, search_memory
from ramify.inference.model import Model, load
from ramify.inference.screen import TOO_LARGE, WarnOnce, doubts, screen, screen_distances, screen_predictions
from ramify.inference.skin import SkinNeighbors
from ramify.structures import Structures

LARGE = 1e9
"""Bytes; predictions that need less are not compared with the free memory, which requires a system call."""


class Calculator(AseCalculator):
    """Energy, free energy, forces and stress of ASE atoms by one branch of a model.

    Energies are total energies on the scale of the branch's dataset, in eV; forces in eV/Å; stress in eV/Å³, tension
    positive. The model has no electronic temperature, so the free energy is the energy. Properties that the branch does
    not predict (stress with direct forces, forces without force labels) are not implemented. With a model that has
    error bars, or a committee, `results` also contain `energy_std` (eV), and on request `forces_std` (n, 3) (eV/Å).

    Args:
        model: a `Model`, or the path of one, or paths of several for a committee (see `ramify.load`).
        branch: name of the branch; required if there are several.
        dataset: dataset whose energy scale is used; required if the branch was trained on several.
        charge, spin: charge in e and multiplicity of atoms that state none in `atoms.info`, for models that take them
            as conditions.
        forces_std: also compute standard deviations of forces, in every calculation.
        skin: Å, sum of the displacements of two atoms that triggers a new neighbour search.
        compile: compile the branch, as in `ramify.load`.
        **options: options of ASE's `Calculator`.

    Raises:
        RamifyError: there are several branches (or datasets) and none is named, or a name is unknown. In calculations:
            the errors of `Model.predict`.

    Warns:
        RamifyWarning: atoms closer than any in the training data, or a charge or spin, taken as a condition, that these
            do not contain; once per set of atoms.
    """

    def __init__(
        self,
        model: Model | str | Path | Sequence[str | Path],
        branch: str | None = None,
        *,
        dataset: str | None = None,
        charge: int | None = None,
        spin: int | None = None,
        forces_std: bool = False,
        skin: float = 0.4,
        compile: bool = False,
        **options: Any,
    ) -> None:
        self.model = model if isinstance(model, Model) else load(model)
        if compile and not self.model.compiled:
            self.model = self.model.with_compilation()
        self.predictor = self.model.predictor(branch, dataset, charge=charge, spin=spin, forces_std=forces_std)
        self.implemented_properties = ["energy", "free_energy"]
        if self.predictor.branch.forces is not None:
            self.implemented_properties.append("forces")
        if self.predictor.branch.stress:
            self.implemented_properties.append("stress")
        if self.predictor.has_error_bars:
            self.implemented_properties += ["energy_std", *(["forces_std"] if forces_std else [])]
        if skin < 0:
            raise RamifyError(f"skin={skin} is below 0", fix="give a length in Å, e.g. 0.4")
        encoder = self.model.options.encoder
        self.neighbors = SkinNeighbors(encoder.cutoff, encoder.max_neighbors, skin, self.model.device.type)
        self._warn = WarnOnce()
        super().__init__(**options)

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """The properties of `atoms`, charge and spin in `atoms.info` included, that differ from those of the last
        calculation; called by ASE before every result.

        Values are compared exactly, which takes a fifth of the time of ASE's comparison.
        """
        before = self.atoms
        if before is None or len(before) != len(atoms):
            return list(all_changes)
        compared = {
            "positions": (before.positions, atoms.positions),
            "numbers": (before.numbers, atoms.numbers),
            "cell": (before.cell.array, atoms.cell.array),
            "pbc": (before.pbc, atoms.pbc),
        }
        for name in ("initial_charges", "initial_magmoms"):
            if atoms.has(name) or before.has(name):
                compared[name] = (before.arrays.get(name), atoms.arrays.get(name))
        changes = [name for name, (one, other) in compared.items() if not np.array_equal(one, other)]
        return changes + [n for n in self.predictor.branch.conditions if atoms.info.get(n) != before.info.get(n)]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Computes all properties that the branch predicts; called by ASE."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None  # set by the line above
        structure, count = self.predictor.stated(Structures.from_ase([self.atoms])), len(self.atoms)
        self._refuse(screen(structure, self.predictor.branch, self.predictor.dataset))
        self._check_memory(count, 0, search_memory(count))
        edges, closest = self.neighbors.find(structure)
        self._refuse(screen_distances(closest))
        doubted = doubts(structure, closest, self.predictor.branch, self.predictor.dataset)
        self._warn(structure, doubted, stacklevel=2)
        self._check_memory(count, len(edges), self.predictor.memory_needed(count, len(edges)))
        answer = self.predictor.predict_edges(structure, edges)
        with_forces = "forces" in self.implemented_properties
        self._refuse(screen_predictions(answer.energy, answer.forces if with_forces else None, structure.n_atoms))
        energy = float(answer.energy[0])
        self.results = {"energy": energy, "free_energy": energy}
        if with_forces:
            self.results["forces"] = answer.forces
        if "stress" in self.implemented_properties and not np.isnan(answer.stress).any():
            self.results["stress"] = full_3x3_to_voigt_6_stress(answer.stress[0])
        if answer.energy_std is not None:
            self.results["energy_std"] = float(answer.energy_std[0])
        if answer.forces_std is not None:
            self.results["forces_std"] = answer.forces_std

    def _refuse(self, refused: dict[int, tuple[str, str]]) -> None:
        if refused:
            reason, detail = refused[0]
            raise RamifyError(f"{reason}: {detail}", fix="correct the structure, or the program that moved its atoms")

    def _check_memory(self, atoms: int, edges: int, needed: float) -> None:
        """Refuses a structure that exceeds the free memory; small structures are not checked."""
        if needed > LARGE and needed > (free := available_memory(self.model.device)):
            size = f"{atoms:,} atoms" + (f" with {edges:,} edges" if edges else "")
            raise RamifyError(
                f"{TOO_LARGE}: {size} take about {readable(needed)}, {readable(free)} are free",
                fix="take a smaller structure, or a machine with more memory",
            )
