"""Selection among equal geometries with different labels.

Copies of a structure (`ramify.prepare.checks.duplicates`) may have different labels: another spin state, charge or
setting of the code. Copies with equal labels are duplicates. Otherwise the data do not show which is correct; the
ground state is the lowest solution of a method for a geometry (variational principle), so by default the lowest energy
is kept.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ramify.packing import pieces_of
from ramify.prepare.checks.duplicates import Column
from ramify.store.manifest import Conflicts
from ramify.structures import atom_rows

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]
Rule = Literal["lowest", "drop", "keep"]

ENERGY = 1e-3
"""eV/atom, tolerance for equal energies: differences between parallel layouts of a code."""
FORCES = 0.05
"""eV/Å, tolerance for equal forces, in norm. Coordinates of copies may differ by 1e-4 Å, which changes forces by 0.02
eV/Å in the stiffest bonds (143 eV/Å² in N2)."""
ATOMS_AT_ONCE = 200_000


Differences = Callable[[Rows, Rows], tuple[Floats, Floats]]
"""`differences(i, j)`: |ΔE| in eV/atom and the largest |ΔF| in eV/Å, NaN without forces, between structures i and j."""


def label_differences(column: Column, offsets: Rows, i: Rows, j: Rows) -> tuple[Floats, Floats]:
    """Differences (both (P,)) of the labels of structures i and j (both (P,)) with equal atoms; `offsets` (S + 1,):
    their first atoms."""
    energies, n_atoms = column("energy"), offsets[i + 1] - offsets[i]
    energy: Floats = np.abs(energies[i] - energies[j]) / n_atoms
    forces = np.full(len(i), np.nan)
    for piece in pieces_of(n_atoms, ATOMS_AT_ONCE):
        n = n_atoms[piece]
        labels = column("forces")  # mapped anew: see `Staged`
        apart = np.take(labels, atom_rows(offsets[i[piece]], n), axis=0).astype(np.float64)
        apart -= np.take(labels, atom_rows(offsets[j[piece]], n), axis=0)
        forces[piece] = np.maximum.reduceat(np.linalg.norm(apart, axis=1), np.cumsum(n) - n)
    return energy, forces


@dataclass(frozen=True, slots=True)
class Verdict:
    """Decision on S structures.

    Attributes:
        copy_of: (S,) the structure kept instead of a duplicate; -1 for others.
        conflict_with: (S,) the structure with the same geometry and different labels, for structures dropped for this
            reason; -1 for others.
        energy, forces: (S,) differences from that structure, eV/atom and eV/Å; NaN for others.
        summary: for the manifest; None if all copies agree.
    """

    copy_of: Rows
    conflict_with: Rows
    energy: Floats
    forces: Floats
    summary: Conflicts | None

    @property
    def kept(self) -> NDArray[np.bool_]:
        """(S,) whether each structure is kept."""
        return (self.copy_of < 0) & (self.conflict_with < 0)


def judge(
    earlier: Rows, per_atom: Floats, labels: NDArray[np.integer], differences: Differences, rule: Rule
) -> Verdict:
    """Decides which of equal structures to keep.

    Args:
        earlier: (S,) the earlier structure that each one repeats, -1 for none (`earlier_equals`).
        per_atom: (S,) energy in eV/atom.
        labels: (S,) number of labels of each; of duplicates, the first with the most labels is kept.
        differences: function that compares labels.
        rule: which structures to keep for a geometry with different labels: the `lowest` energy, none (`drop`) or all
            (`keep`).
    """
    copies = np.flatnonzero(earlier >= 0)
    alike = _agree(*differences(copies, earlier[copies]))
    to_judge = earlier[copies[~alike | (labels[copies] != labels[earlier[copies]])]]  # of others, the first is kept
    S = len(earlier)
    copy_of, conflict_with = earlier.copy(), np.full(S, -1, np.int64)
    geometries, structures, spread, apart = 0, 0, 0.0, np.nan
    for members in _geometries(copies, earlier, np.unique(to_judge)):
        clusters = _clusters(members, per_atom, differences)
        stay = [int(cluster[np.argmax(labels[cluster])]) for cluster in clusters]
        for cluster, chosen in zip(clusters, stay, strict=True):
            copy_of[cluster] = np.where(cluster == chosen, -1, chosen)
        if len(clusters) == 1:
            continue
        geometries, structures = geometries + 1, structures + len(members)
        spread = max(spread, float(np.ptp(per_atom[members])))
        apart = np.fmax.reduce(differences(members, np.full(len(members), stay[0]))[1], initial=apart)
        if rule != "keep":
            gone = np.concatenate(clusters if rule == "drop" else clusters[1:])
            copy_of[gone], conflict_with[gone] = -1, stay[0]
    energy, forces = np.full(S, np.nan), np.full(S, np.nan)
    rows = np.flatnonzero(conflict_with >= 0)
    energy[rows], forces[rows] = differences(rows, conflict_with[rows])
    summary = None
    if geometries:
        largest = None if np.isnan(apart) else float(apart)
        summary = Conflicts(geometries=geometries, structures=structures, energy=spread, forces=largest)
    return Verdict(copy_of, conflict_with, energy, forces, summary)


def _geometries(copies: Rows, earlier: Rows, first: Rows) -> Iterator[Rows]:
    """Yields all structures with the geometry of each of `first`, in source order."""
    order = copies[np.argsort(earlier[copies], kind="stable")]
    starts, stops = (np.searchsorted(earlier[order], first, side=side) for side in ("left", "right"))
    for one, start, stop in zip(first.tolist(), starts.tolist(), stops.tolist(), strict=True):
        yield np.concatenate([[one], order[start:stop]])


def _clusters(members: Rows, per_atom: Floats, differences: Differences) -> list[Rows]:
    """Clusters structures of one geometry by agreement with the first member, the lowest energy first."""
    clusters: list[list[int]] = []
    for member in members[np.argsort(per_atom[members], kind="stable")].tolist():
        found = None
        for cluster in reversed(clusters):  # the energies of their first members ascend
            if per_atom[member] - per_atom[cluster[0]] > ENERGY:
                break
            if _agree(*differences(np.array([member]), np.array(cluster[:1])))[0]:
                found = cluster
                break
        if found is None:
            clusters.append([member])
        else:
            found.append(member)
    return [np.array(sorted(cluster), np.int64) for cluster in clusters]


def _agree(energy: Floats, forces: Floats) -> NDArray[np.bool_]:
    """Returns whether differences are within tolerances; missing forces are ignored."""
    return ~((energy > ENERGY) | (forces > FORCES))
