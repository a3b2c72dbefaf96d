"""Consistency of forces and energies of a dataset: the slope of dE on -(F_i + F_j)/2 · (x_j - x_i) must be 1.

Pairs are structures with the same elements in the same order and the same cell. The trapezoidal rule is exact for a
quadratic energy surface; its error grows with the cube of the distance r between the structures, while the energy
difference grows with r to r², so distant pairs are less informative: each is weighted by 1/(r² + r0²)², where r is the
root mean square displacement. For datasets whose forces agree with finite differences, this gives 0.97 to 1.02, while
unweighted regression gives 0.7 to 1.1, depending on the maximum distance of pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ramify.errors import RamifyError
from ramify.packing import pieces_of
from ramify.prepare.checks.fingerprints import Fingerprints, geometry_weights
from ramify.store.manifest import Consistency
from ramify.structures import Structures, atom_rows

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]

ACCEPTED = (0.8, 1.25)
"""Range of slopes for consistent labels; other slopes are marked. Most datasets give 0.95 to 1.05; anharmonic crystals
with more distant pairs give less (0.1 Å of random displacement in a metal: 0.89; InP: 0.85)."""
REFUSED = (0.7, 1.4)
"""A slope outside this range stops the preparation. Known errors of units give at most 0.53 or at least 1.89."""
ENOUGH_PAIRS = 30
"""Minimum number of close pairs for a judgement."""
MEANINGFUL = 0.8
"""Minimum correlation for a slope that is accurate enough to be judged alone."""
TELLING = 0.5
"""Minimum correlation for bounds: the slope is between that of dE on -F·dx and that of -F·dx on dE, which is
1/correlation² times as large (bounds of regression with errors in both variables, Frisch 1934); it is refused if the
whole interval is outside `REFUSED`. Weaker correlations are inconclusive (e.g. two labels for one geometry)."""
IDENTICAL = 1e-3
"""Å; pairs with a smaller r are left out, because rounding of positions in files dominates."""
CELL_TOLERANCE = 1e-5
"""Å, tolerance for equal cells."""
BUDGET = 2_000_000
"""Atom pairs tested per chunk until enough close pairs are found (about 60 ms)."""
TOTAL_BUDGET = 20_000_000
SOUGHT = 2000
"""Number of close pairs after which the search is reduced."""
SAMPLED = 10_000
"""Atom pairs tested per chunk in the reduced search."""
ATOMS_AT_ONCE = 100_000

KNOWN_RATIOS = (
    (1.889726, "forces are in Ha/bohr while positions are in Å"),
    (0.529177, "forces were multiplied by bohr per Å once too often, or positions are in bohr"),
    (27.211386, "energies are in eV but forces in Ha/Å"),
    (0.0367493, "energies are in Hartree but forces in eV/Å"),
    (51.422067, "energies are in eV but forces in Ha/bohr"),
    (0.0194469, "energies are in Hartree, positions in bohr, but forces in eV/Å"),
    (23.060548, "energies are in kcal/mol but forces in eV/Å"),
    (0.0433641, "energies are in eV but forces in kcal/mol/Å"),
    (627.50947, "energies are in kcal/mol but forces in Ha/Å"),
    (0.00159360, "energies are in Hartree but forces in kcal/mol/Å"),
    (96.485332, "energies are in kJ/mol but forces in eV/Å"),
    (0.0103643, "energies are in eV but forces in kJ/mol/Å"),
)
"""Slopes caused by common errors (CODATA 2018: Hartree 27.211386 eV, bohr 0.529177 Å)."""
RATIO_TOLERANCE = 0.1


@dataclass(slots=True)
class SlopeMeter:
    """Collects close pairs chunk by chunk.

    Args:
        limit: Å, largest displacement of an atom along any axis between the two structures of a pair.
        r0: Å, see the module; None weighs all pairs alike.
    """

    limit: float = 0.3
    r0: float | None = 0.01
    pairs: int = 0
    _spent: int = 0
    _ww: float = 0.0
    _ew: float = 0.0
    _ee: float = 0.0
    _nw: float = 0.0

    @property
    def searching(self) -> bool:
        """Whether the full search continues."""
        return self.pairs < SOUGHT and self._spent < TOTAL_BUDGET

    def add(self, structures: Structures, prints: Fingerprints) -> None:
        """Adds the close pairs among `structures`, testing at most about `BUDGET` atom pairs."""
        for i, j in self._candidates(structures, prints, BUDGET):
            self._spent += int(structures.n_atoms[i].sum())
            self._measure(structures, i, j)
            if self.pairs >= SOUGHT:
                break

    def sample(self, structures: Structures, prints: Fingerprints) -> None:
        """Adds some close pairs among `structures`, testing about `SAMPLED` atom pairs."""
        for i, j in self._candidates(structures, prints, SAMPLED):
            self._measure(structures, i, j)

    def take_over(self, sampled: "SlopeMeter") -> None:
        """Adds the pairs of another meter."""
        self.pairs += sampled.pairs
        self._ww += sampled._ww
        self._ew += sampled._ew
        self._ee += sampled._ee
        self._nw += sampled._nw

    def result(self) -> Consistency:
        """Slope and (uncentred) correlation of all pairs so far; None with fewer than `ENOUGH_PAIRS` pairs."""
        if self.pairs < ENOUGH_PAIRS or self._ww == 0 or self._ee == 0:
            return Consistency(slope=None, pairs=self.pairs, correlation=None)
        correlation = self._ew / np.sqrt(self._ww * self._ee)
        return Consistency(slope=self._ew / self._ww, pairs=self.pairs, correlation=float(correlation))

    def check(self, dataset: str) -> Consistency:
        """Returns the result if it is within `REFUSED` or inconclusive.

        Raises:
            RamifyError: forces and energies contradict each other.
        """
        found = self.result()
        if found.slope is None or found.correlation is None or abs(found.correlation) < TELLING:
            return found
        other = found.slope if abs(found.correlation) >= MEANINGFUL else found.slope / found.correlation**2
        if max(found.slope, other) >= REFUSED[0] and min(found.slope, other) <= REFUSED[1]:
            return found
        meaning, fix = _explain(found.slope, self._nw / self._ww)
        raise RamifyError(
            f"dataset '{dataset}': forces and energies disagree. The slope of dE on -F·dx is {found.slope:.4g} over "
            f"{found.pairs} pairs of close structures (correlation {found.correlation:.2f}), accepted {REFUSED[0]} to "
            f"{REFUSED[1]}, expected 1. {meaning}",
            fix=fix.replace("DATASET", dataset),
        )

    def _candidates(self, structures: Structures, prints: Fingerprints, budget: int) -> Iterator[tuple[Rows, Rows]]:
        """Yields pairs (i, j) to test, in parts of bounded size: increasing lags in runs of comparable structures."""
        has_forces = np.logical_and.reduceat(np.isfinite(structures.forces[:, 0]), structures.offsets[:-1])
        cell = np.rint(structures.cell * structures.pbc[:, :, None] / CELL_TOLERANCE)
        key = np.einsum("sij,ij->s", cell, geometry_weights(3)[0])  # one number per cell distinguishes cells
        rows = np.flatnonzero(has_forces & np.isfinite(structures.energy))
        order = rows[np.lexsort((key[rows], prints.sequence[rows]))]
        left, lag = np.arange(len(order) - 1), 1
        while len(left) and budget > 0:
            i, j = order[left], order[left + lag]
            alike = (prints.sequence[i] == prints.sequence[j]) & (key[i] == key[j])
            left, i, j = left[alike], i[alike], j[alike]
            work = np.cumsum(structures.n_atoms[i])
            affordable = int(np.searchsorted(work, budget)) + 1
            for part in pieces_of(structures.n_atoms[i[:affordable]], ATOMS_AT_ONCE):
                yield i[part], j[part]
            budget -= int(work[:affordable].max(initial=0))
            lag += 1
            left = left[left + lag < len(order)]

    def _measure(self, structures: Structures, i: Rows, j: Rows) -> None:
        """Adds the pairs that are close."""
        n = structures.n_atoms[i]
        starts = np.cumsum(n) - n
        offsets = structures.offsets
        a, b = atom_rows(offsets[i], n), atom_rows(offsets[j], n)
        dx = np.take(structures.positions, b, axis=0).astype(np.float64) - np.take(structures.positions, a, axis=0)
        dx -= _nearest_lattice_vectors(dx, structures, i, n)
        mean_force = np.take(structures.forces, a, axis=0).astype(np.float64) + np.take(structures.forces, b, axis=0)
        work = -0.5 * np.add.reduceat(np.einsum("nc,nc->n", mean_force, dx), starts)
        r: Floats = np.sqrt(np.add.reduceat(np.einsum("nc,nc->n", dx, dx), starts) / n)
        furthest: Floats = np.maximum.reduceat(np.abs(dx), starts, axis=0).max(axis=1)
        close = np.flatnonzero((furthest < self.limit) & (r > IDENTICAL))
        weight = 1.0 if self.r0 is None else 1 / (r[close] ** 2 + self.r0**2)
        energy = (structures.energy[j] - structures.energy[i])[close] * weight
        work = work[close] * weight
        self.pairs += len(close)
        self._ww += float(work @ work)
        self._ew += float(energy @ work)
        self._ee += float(energy @ energy)
        self._nw += float((energy * n[close]) @ work)


def _nearest_lattice_vectors(
    dx: NDArray[np.float64], structures: Structures, i: Rows, n: Rows
) -> NDArray[np.float64] | float:
    """Lattice vectors to subtract from (N, 3) displacements, for atoms wrapped to the other side of their cell."""
    if not structures.pbc[i].any():
        return 0.0
    # in slabs and chains, wrapped atoms are not corrected: the pair is then distant
    full: NDArray[np.bool_] = np.asarray(structures.pbc[i].all(axis=1))
    cell = np.where(full[:, None, None], structures.cell[i].astype(np.float64), np.eye(3) * 1e9)
    of_atom = np.repeat(np.arange(len(i)), n)
    fractional = np.einsum("nc,nck->nk", dx, np.linalg.inv(cell)[of_atom])
    shift: NDArray[np.float64] = np.einsum("nk,nkc->nc", np.rint(fractional), cell[of_atom])
    return shift


def _explain(slope: float, slope_per_atom: float) -> tuple[str, str]:
    """Possible causes of a slope outside the accepted range, and the fix."""
    sign = "state `forces_sign: -1` under datasets.DATASET in the recipe"
    if abs(abs(slope) - 1) < RATIO_TOLERANCE:
        return "-1 means: the file stores gradients under the name of forces.", sign
    meanings = [m for ratio, m in KNOWN_RATIOS if abs(abs(slope) / ratio - 1) < RATIO_TOLERANCE]
    if ACCEPTED[0] <= abs(slope_per_atom) <= ACCEPTED[1]:
        meanings.append("energies are per atom")
    fix = "check which energy belongs to these forces, and the units and sign of both"
    if meanings:
        fix = "correct the units of the labels (`units`, `energy_is_per_atom` where the format has them, or the file)"
    if slope < 0:
        meanings.append("gradients are stored under the name of forces")
        fix += f", and {sign}"
    joined = ("; or: " if slope > 0 else "; ").join(meanings)
    return (f"This may mean: {joined}." if joined else "", fix)
