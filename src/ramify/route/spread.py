"""Spread of the branches of a model on a structure, as a first estimate of uncertainty.

Total energies of different branches have different scales. Therefore energies per atom after the reference energies of
each branch are compared, and forces, which need no reference.
"""

from dataclasses import dataclass

import numpy as np

from ramify.inference.memory import budget_for
from ramify.inference.model import Model
from ramify.inference.predictions import Floats
from ramify.references import reference_energy
from ramify.structures import Structures


@dataclass(frozen=True, slots=True)
class BranchSpread:
    """Spread of the branches that were trained on all elements of a structure.

    Attributes:
        branches: their names.
        energy: eV/atom, standard deviation over branches of the energy per atom after references; None for fewer than
            two branches.
        forces: eV/Å, root mean square over atoms and components of the standard deviation over branches; None for
            fewer than two branches with forces.
    """

    branches: tuple[str, ...]
    energy: float | None
    forces: float | None


def spreads(model: Model, structures: Structures) -> tuple[list[BranchSpread], dict[int, str]]:
    """The spread for each structure, and by index the reason why no branch predicts a structure.

    Args:
        model: model with all branches to compare.
        structures: any number.
    """
    energies: list[list[tuple[str, float]]] = [[] for _ in range(len(structures))]
    forces: list[list[Floats]] = [[] for _ in range(len(structures))]
    why: dict[int, str] = {}
    for name, branch in model.branches.items():
        dataset = next(iter(branch.datasets.values()))
        budget = budget_for(model.options, branch.forces, model.device, None)
        found = model.predictor(name, dataset.name).predict(structures, budget)
        # structures with elements that have no reference energy in the branch are refused
        scale = reference_energy(structures, np.nan_to_num(dataset.reference_table()))
        for k in range(len(structures)):
            one = found[k]
            if one is None:
                why.setdefault(k, ": ".join(found.refused[k]))
                continue
            energies[k].append((name, (one.energy - float(scale[k])) / int(structures.n_atoms[k])))
            if one.forces is not None:
                forces[k].append(one.forces)
    unknown = {k: reason for k, reason in why.items() if not energies[k]}
    return [_spread(e, f) for e, f in zip(energies, forces, strict=True)], unknown


def _spread(energies: list[tuple[str, float]], forces: list[Floats]) -> BranchSpread:
    values = [energy for _, energy in energies]
    return BranchSpread(
        tuple(name for name, _ in energies),
        float(np.std(values)) if len(values) > 1 else None,
        float(np.sqrt(np.var(np.stack(forces), axis=0).mean())) if len(forces) > 1 else None,
    )
