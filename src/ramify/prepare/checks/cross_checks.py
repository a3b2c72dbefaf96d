"""Gates that compare structures with one another: duplicates, and outliers of energy."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ramify.prepare.checks.conflicts import judge, label_differences
from ramify.prepare.checks.duplicates import earlier_equals, equal_structures
from ramify.prepare.checks.gates import CONFLICT, DUPLICATE, OUTLIER
from ramify.prepare.checks.outliers import deviations
from ramify.prepare.staging import Staged
from ramify.sources.base import Gates
from ramify.sources.quarantine import Quarantine
from ramify.store.manifest import Conflicts, Finding


@dataclass(frozen=True, slots=True)
class Compared:
    """Result of comparing S structures.

    Attributes:
        keep: (S,) whether each structure is kept.
        conflicts: equal geometries with different labels, if any.
        findings: warnings for the user.
    """

    keep: NDArray[np.bool_]
    conflicts: Conflicts | None
    findings: list[Finding]


SUBSETS = 5
"""Maximum number of places of outliers listed in a finding."""


def compare(staged: Staged, gates: Gates, quarantine: Quarantine) -> Compared:
    """Screens structures that passed the gates for single structures; failures are added to the quarantine."""
    keep, conflicts = np.ones(len(staged), np.bool_), None
    if gates.duplicates == "drop":
        keep, conflicts = _without_copies(staged, gates, quarantine)
    rows = np.flatnonzero(keep)
    found = deviations(staged, rows, gates.energy_outlier)
    outliers = np.flatnonzero(found.units > gates.energy_outlier)
    for at in outliers.tolist():
        why = f"{found.energy[at]:.4g} eV/atom from structures like it, {found.units[at]:.4g} units"
        quarantine.add(staged.name(int(rows[at])), OUTLIER, f"{why}, limit {gates.energy_outlier:g}")
    keep[rows[outliers]] = False
    findings = [
        *_of_conflicts(conflicts, gates),
        *_by_subset(staged, rows[outliers], float(found.energy[outliers].max(initial=0.0))),
    ]
    return Compared(keep, conflicts, findings)


def _of_conflicts(conflicts: Conflicts | None, gates: Gates) -> Iterator[Finding]:
    """Equal geometries with other labels: nothing in the data says which are right."""
    if conflicts is None:
        return
    kept = {"lowest": "the lowest energy of each was kept", "drop": "none was kept", "keep": "all were kept"}
    yield Finding(
        text=f"{conflicts.structures} structures share {conflicts.geometries} geometries and differ in their labels, "
        f"by up to {conflicts.energy:.3g} eV/atom (another charge or spin?): {kept[gates.conflicting_labels]}",
        fix="`charge_key` and `spin_key`, if the files state them; or `gates.conflicting_labels`; or a dataset for "
        "each state, by `where: {charge: 0}`",
    )


def _by_subset(staged: Staged, outliers: NDArray[np.int64], largest: float) -> Iterator[Finding]:
    """Yields a finding with the origins of outliers: places in the files, or groups if there is only one place."""
    if not len(outliers):
        return
    column, names = ("origin", staged.origins) if len(staged.origins) > 1 else ("group", staged.groups)
    counts = Counter(names[number] for number in staged.column(column)[outliers].tolist())
    listed = ", ".join(f"{count} in {name}" for name, count in counts.most_common(SUBSETS))
    more = f" and {len(counts) - SUBSETS} more" if len(counts) > SUBSETS else ""
    yield Finding(
        text=f"{len(outliers)} energies lie up to {largest:.3g} eV/atom from those of structures like them: {listed}"
        f"{more}; they were left out",
        fix="look at them in quarantine.jsonl; a larger `gates.energy_outlier` keeps them",
    )


def _without_copies(staged: Staged, gates: Gates, quarantine: Quarantine) -> tuple[NDArray[np.bool_], Conflicts | None]:
    """(S,) whether each structure is kept after removal of duplicates."""
    earlier = earlier_equals(
        staged.scalars["sequence"],
        staged.scalars["projection"],
        staged.n_atoms,
        partial(equal_structures, staged.column, staged.offsets),
    )
    copies = np.flatnonzero(earlier >= 0)
    involved = np.union1d(copies, earlier[copies])
    labels = np.zeros(len(staged), np.int8)
    labels[involved] = np.isfinite(staged.column("forces")[staged.offsets[involved], 0])
    labels[involved] += np.isfinite(staged.column("stress")[involved, 0, 0])
    found = judge(
        earlier,
        staged.column("energy") / staged.n_atoms,
        labels,
        partial(label_differences, staged.column, staged.offsets),
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
