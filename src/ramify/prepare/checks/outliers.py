"""Outliers of energy: wrong labels, as opposed to structures far from equilibrium.

The energy alone is not sufficient: a compressed crystal is electronvolts per atom above its equilibrium. So an energy
per atom is compared with those of structures that are similar in one of three quantities: volume (if all axes are
periodic), closest distance, largest force. For each, the structures of one reduced formula, charge and spin are sorted,
and an energy is expected between the median of its predecessors and the median of its successors; at both ends, where
the curve must be extrapolated, a larger range is accepted. An energy that none of the three quantities explains is an
outlier. Formulas with few structures are judged together for each charge and spin, by the residuals of their energies
after subtracting reference energies.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from ase.data import covalent_radii
from numpy.typing import NDArray

from ramify.packing import pieces_of
from ramify.prepare.checks.fingerprints import state_hash
from ramify.prepare.staging import Staged
from ramify.references import fit_references

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

UNIT = 0.02
"""eV/atom, minimum size of one unit of `Gates.energy_outlier`: energies of one formula within 1.2 eV/atom (60 units)
are never outliers."""
UNITS_PER_DEVIATION = (6, 4)
"""Units per median absolute deviation, if energies vary more: within one formula, and for formulas judged together; 60
units are then 10 and 15 deviations. Tested on two dozen datasets: only failed self-consistency (lanthanide dimers) is
beyond the limit, and with 4 and 4, a third more of shifts by 1.36 eV/atom would be missed."""
NEIGHBORS = 20
"""Neighbouring structures on each side: with fewer, a rare phase looks like an outlier; with more, curves blur."""
ENOUGH = 12
"""Minimum number of structures for judging a formula alone."""
BEYOND = 3
"""Accepted distance of an energy at the end of a curve from the median of its neighbours, relative to their range."""
APART = 5.0
"""Mean covalent radii; with a larger closest distance (2.5 bond lengths), atoms are isolated, and their energy is above
that of bound structures by the cohesive energy."""
ROWS_AT_ONCE = 200_000
ATOMS_AT_ONCE = 200_000
GROSS = 20
"""Median absolute deviations above which an energy is excluded from the fit of references."""


@dataclass(frozen=True, slots=True)
class Deviations:
    """Deviations of S energies from the expected range.

    Attributes:
        units: (S,) distance in units of `Gates.energy_outlier`; 0 within the expected range.
        energy: (S,) the same distance in eV/atom.
    """

    units: Floats
    energy: Floats


def deviations(staged: Staged, rows: Rows, limit: float) -> Deviations:
    """Deviations of the energies of the structures `rows` (T,) from those of similar structures; arrays are (T,).

    Args:
        staged: structures that passed the gates for single structures.
        rows: indices of structures, without duplicates.
        limit: `Gates.energy_outlier`; energies that cannot exceed it are skipped.
    """
    found = Deviations(np.zeros(len(rows)), np.zeros(len(rows)))
    if not len(rows):
        return found
    energy = staged.column("energy")[rows] / staged.n_atoms[rows]
    views = _views(staged, rows)
    state = state_hash(staged.column("charge")[rows], staged.column("spin")[rows])
    formula = staged.formulas[staged.scalars["composition"][rows]] ^ state
    order = np.argsort(formula, kind="stable")
    starts = np.flatnonzero(np.diff(formula[order], prepend=~formula[order[0]]))
    few: dict[int, list[Rows]] = {}
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(rows)], strict=True):
        pool = order[start:stop]
        if len(pool) >= ENOUGH:
            _judge(pool, energy, views, limit, found, UNITS_PER_DEVIATION[0])
        else:
            few.setdefault(int(state[pool[0]]), []).append(pool)
    for pools in few.values():  # of one charge and spin
        rest = np.sort(np.concatenate(pools))
        if len(rest) < ENOUGH:
            continue
        left = np.full(len(rows), np.nan)
        left[rest] = _residuals(staged, rows[rest])
        _judge(rest, left, views, limit, found, UNITS_PER_DEVIATION[1])
    return found


def _views(staged: Staged, rows: Rows) -> list[Floats]:
    """Quantities (T,) by which structures are sorted; NaN if undefined. Lengths are in units of the mean covalent
    radius, so that different formulas can be compared."""
    sizes = staged.radii[staged.scalars["composition"][rows]]
    periodic = staged.column("pbc")[rows].all(axis=1)
    volume = np.abs(np.linalg.det(staged.column("cell")[rows].astype(np.float64))) / staged.n_atoms[rows] / sizes**3
    closest, forces = (staged.scalars[name][rows].astype(np.float64) for name in ("closest", "max_force"))
    closest /= sizes
    apart = closest > APART  # infinite for a single atom without images
    views = (np.where(periodic, volume, np.nan), closest, forces)
    return [np.where(apart, np.nan, view) for view in views]


def _judge(pool: Rows, energy: Floats, views: list[Floats], limit: float, found: Deviations, per: int) -> None:
    """Stores the smallest deviation of the energies of `pool` over all quantities."""
    if np.ptp(energy[pool]) <= limit * UNIT:
        return
    units, apart = np.full(len(pool), np.inf), np.full(len(pool), np.inf)
    for view in views:
        known = np.flatnonzero(~np.isnan(view[pool]))
        if len(known) < ENOUGH:
            continue
        order = known[np.argsort(view[pool[known]], kind="stable")]
        distance, unit = _from_neighbors(energy[pool[order]], per)
        better = distance / unit < units[order]
        units[order[better]] = (distance / unit)[better]
        apart[order[better]] = distance[better]
    judged = np.isfinite(units)  # structures without any of the quantities are not judged
    found.units[pool[judged]], found.energy[pool[judged]] = units[judged], apart[judged]


def _from_neighbors(energy: Floats, per: int) -> tuple[Floats, Floats]:
    """Distance of each energy from the range of its neighbours in sorted order, and the unit; both (n,), eV/atom. `per`
    units are a median absolute deviation."""
    padded = np.concatenate([np.full(NEIGHBORS, np.nan), energy, np.full(NEIGHBORS, np.nan)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, NEIGHBORS)
    distance, unit = np.empty(len(energy)), np.empty(len(energy))
    for start in range(0, len(energy), ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, len(energy))
        before, behind = windows[start:stop], windows[NEIGHBORS + 1 + start : NEIGHBORS + 1 + stop]
        here = energy[start:stop]
        sides = [(side, _median(side)) for side in (before, behind)]
        spread = np.concatenate([np.abs(side - middle[:, None]) for side, middle in sides], axis=1)
        unit[start:stop] = np.maximum(_median(spread) / per, UNIT)
        low, high = np.fmin(sides[0][1], sides[1][1]), np.fmax(sides[0][1], sides[1][1])
        for side, middle in sides:
            end = np.isnan(middle)  # no structure on the other side
            other = sides[1][0] if side is before else sides[0][0]
            reach = BEYOND * (np.nanmax(other[end], axis=1) - np.nanmin(other[end], axis=1)) if end.any() else 0.0
            low[end] -= reach
            high[end] += reach
        distance[start:stop] = np.maximum(np.maximum(low - here, here - high), 0.0)
    return distance, unit


def _median(values: Floats) -> Floats:
    """(n,) medians of the rows of (n, m) numbers, ignoring NaN; NaN for rows with only NaN."""
    ordered = np.sort(values, axis=1)  # NaN come last
    count = (~np.isnan(ordered)).sum(axis=1)
    at = np.arange(len(ordered))
    middle: Floats = 0.5 * (ordered[at, np.maximum(count - 1, 0) // 2] + ordered[at, count // 2])
    return middle


def _residuals(staged: Staged, rows: Rows) -> Floats:
    """(T,) eV/atom, residuals of energies after subtracting reference energies. Outliers are excluded from the fit: a
    single energy in another unit would shift the references of its elements."""
    kept = np.ones(len(rows), np.bool_)
    for _ in range(2):
        residual = _fit_residuals(staged, rows, kept)
        apart = np.abs(residual - np.median(residual))
        kept = apart <= GROSS * max(float(np.median(apart)), UNIT)
    return residual


def _fit_residuals(staged: Staged, rows: Rows, kept: NDArray[np.bool_]) -> Floats:
    n_atoms = staged.n_atoms[rows].astype(np.int64)

    def chunks(chosen: NDArray[np.bool_]) -> Iterator[tuple[Rows, NDArray[np.uint8], Floats]]:
        for piece in pieces_of(n_atoms, ATOMS_AT_ONCE):
            some = rows[piece][chosen[piece]]
            if len(some):
                yield staged.n_atoms[some].astype(np.int64), staged.numbers_of(some), staged.column("energy")[some]

    present = np.zeros(len(covalent_radii), np.bool_)
    for _, numbers, _ in chunks(kept):
        present[numbers] = True
    energies = fit_references(lambda: chunks(kept), np.flatnonzero(present)).energies
    residual, at = np.empty(len(rows)), 0
    for n, numbers, energy in chunks(np.ones(len(rows), np.bool_)):
        references = np.add.reduceat(energies[numbers], np.cumsum(n) - n)
        residual[at : at + len(n)] = (energy - references) / n
        at += len(n)
    residual[np.isnan(residual)] = 0.0  # an element that only occurs in outliers: no comparison possible
    return residual
