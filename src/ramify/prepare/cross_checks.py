"""The gates that compare structures with one another: equal ones, and energies far from those of their like."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ramify.prepare.conflicts import judge, label_differences
from ramify.prepare.duplicates import earlier_equals, equal_structures
from ramify.prepare.gates import CONFLICT, DUPLICATE, OUTLIER, detail, energy_deviations
from ramify.prepare.staging import Staged
from ramify.quarantine import Quarantine
from ramify.sources.base import Gates
from ramify.store.manifest import Conflicts


@dataclass(frozen=True, slots=True)
class Compared:
    """What is left of S structures.

    Attributes:
        keep: (S,) whether each is left.
        conflicts: equal geometries with other labels, if there are any.
    """

    keep: NDArray[np.bool_]
    conflicts: Conflicts | None


def compare(staged: Staged, gates: Gates, quarantine: Quarantine) -> Compared:
    """Screens structures that passed the gates which look at one at a time; failures are noted."""
    keep, conflicts = np.ones(len(staged), np.bool_), None
    if gates.duplicates == "drop":
        keep, conflicts = _without_copies(staged, gates, quarantine)
    rows = np.flatnonzero(keep)
    limit = gates.energy_outlier
    per_atom = staged.energy[rows] / staged.n_atoms[rows]
    deviations = energy_deviations(per_atom, staged.scalars["composition"][rows], limit)
    for at in np.flatnonzero(deviations > limit).tolist():
        quarantine.add(staged.name(int(rows[at])), OUTLIER, detail(OUTLIER, float(deviations[at]), gates))
    keep[rows] = deviations <= limit
    return Compared(keep, conflicts)


def _without_copies(staged: Staged, gates: Gates, quarantine: Quarantine) -> tuple[NDArray[np.bool_], Conflicts | None]:
    """(S,) what is left when every structure stands there once."""
    earlier = earlier_equals(
        staged.scalars["sequence"],
        staged.scalars["projection"],
        staged.n_atoms,
        partial(equal_structures, staged, staged.offsets),
    )
    copies = np.flatnonzero(earlier >= 0)
    involved = np.union1d(copies, earlier[copies])
    labels = np.zeros(len(staged), np.int8)
    labels[involved] = np.isfinite(staged.forces[staged.offsets[involved], 0])
    labels[involved] += np.isfinite(staged.stress[involved, 0, 0])
    found = judge(
        earlier,
        staged.energy / staged.n_atoms,
        labels,
        partial(label_differences, staged, staged.offsets),
        gates.conflicting_labels,
    )
    for row in np.flatnonzero(~found.kept).tolist():
        if (other := int(found.copy_of[row])) >= 0:
            quarantine.add(staged.name(row), DUPLICATE, f"equal to {staged.name(other)}")
            continue
        other, forces = int(found.conflict_with[row]), found.forces[row]
        apart = "" if np.isnan(forces) else f", a force {forces:.4g} eV/Å"
        what = f"geometry of {staged.name(other)}, energy {found.energy[row]:.4g} eV/atom{apart} away"
        quarantine.add(staged.name(row), CONFLICT, "one of several with this geometry" if other == row else what)
    return found.kept, found.summary
