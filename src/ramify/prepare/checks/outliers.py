"""Energies far from those of their like: labels that went wrong, and not merely structures far from equilibrium.

The energy of a structure says little by itself: a compressed crystal lies electronvolts per atom above the same one at
rest. So an energy per atom is compared with those of structures that are like it in one of three ways: in volume (where
all axes are periodic), in the distance of the closest atoms, in the largest force. In each, the structures of one
reduced formula are put in order, and an energy is expected between the median of those before it and the median of
those behind it; before the first and behind the last, where a curve goes on that nobody knows, farther out. An energy
that none of the three explains is an outlier. Formulas with few structures are judged together, by what reference
energies leave of theirs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from ase.data import covalent_radii
from numpy.typing import NDArray

from ramify.packing import pieces_of
from ramify.prepare.staging import Staged
from ramify.references import fit_references

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

UNIT = 0.02
"""eV/atom, the least that counts as one unit of `Gates.energy_outlier`: energies of one formula that lie within 1.2
eV/atom (60 units) are never outliers."""
UNITS_PER_DEVIATION = (6, 4)
"""Units in one median absolute deviation, where energies scatter more: within one formula, and where formulas are
judged together; 60 units are then 10 and 15 deviations. Tried on two dozen datasets of this field: nothing but failed
self-consistency (dimers of lanthanides) lies beyond, and 4 and 4 would miss a third of shifts by 1.36 eV/atom more."""
NEIGHBORS = 20
"""Structures looked at on either side: with fewer a rare phase looks like an outlier, with more a curve is blurred."""
ENOUGH = 12
"""Structures of one formula that are judged by themselves."""
BEYOND = 3
"""How many times the range of its neighbours an energy at the end of a curve may lie beyond their median."""
APART = 5.0
"""Mean covalent radii; where the closest atoms are farther apart (2.5 bond lengths), they are isolated atoms, which lie
above everything that is bound by their energy of cohesion."""
ROWS_AT_ONCE = 200_000
ATOMS_AT_ONCE = 200_000
GROSS = 20
"""Median absolute deviations beyond which an energy does not enter the references that others are judged by."""


@dataclass(frozen=True, slots=True)
class Deviations:
    """How far S energies lie from what is expected.

    Attributes:
        units: (S,) distance in units of `Gates.energy_outlier`; 0 where it is explained.
        energy: (S,) the same distance in eV/atom.
    """

    units: Floats
    energy: Floats


def deviations(staged: Staged, rows: Rows, limit: float) -> Deviations:
    """How far the energies of the structures `rows` (T,) lie from those of their like; arrays are (T,).

    Args:
        staged: structures that passed the gates which look at one at a time.
        rows: which of them, without copies.
        limit: `Gates.energy_outlier`; energies that cannot exceed it are not looked at.
    """
    found = Deviations(np.zeros(len(rows)), np.zeros(len(rows)))
    if not len(rows):
        return found
    energy = staged.energy[rows] / staged.n_atoms[rows]
    views = _views(staged, rows)
    formula = staged.formulas[staged.scalars["composition"][rows]]
    order = np.argsort(formula, kind="stable")
    starts = np.flatnonzero(np.diff(formula[order], prepend=~formula[order[0]]))
    few: list[Rows] = []
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(rows)], strict=True):
        pool = order[start:stop]
        if len(pool) >= ENOUGH:
            _judge(pool, energy, views, limit, found, UNITS_PER_DEVIATION[0])
        else:
            few.append(pool)
    rest = np.sort(np.concatenate(few)) if few else np.zeros(0, np.int64)
    if len(rest) >= ENOUGH:
        left = np.full(len(rows), np.nan)
        left[rest] = _residuals(staged, rows[rest])
        _judge(rest, left, views, limit, found, UNITS_PER_DEVIATION[1])
    return found


def _views(staged: Staged, rows: Rows) -> list[Floats]:
    """Each (T,): what structures are ordered by; NaN where a structure has no such thing. Lengths are in units of the
    mean covalent radius, so that different formulas can be compared."""
    sizes = staged.radii[staged.scalars["composition"][rows]]
    periodic = staged.pbc[rows].all(axis=1)
    volume = np.abs(np.linalg.det(staged.cell[rows].astype(np.float64))) / staged.n_atoms[rows] / sizes**3
    closest, forces = (staged.scalars[name][rows].astype(np.float64) for name in ("closest", "max_force"))
    closest /= sizes
    apart = closest > APART  # infinite for a single atom without images
    views = (np.where(periodic, volume, np.nan), closest, forces)
    return [np.where(apart, np.nan, view) for view in views]


def _judge(pool: Rows, energy: Floats, views: list[Floats], limit: float, found: Deviations, per: int) -> None:
    """Writes down how far the energies of `pool` are from being explained by any view."""
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
    judged = np.isfinite(units)  # what has neither volume nor neighbours nor forces is like nothing else
    found.units[pool[judged]], found.energy[pool[judged]] = units[judged], apart[judged]


def _from_neighbors(energy: Floats, per: int) -> tuple[Floats, Floats]:
    """How far each energy lies outside what those around it in order span, and the unit of it; both (n,), eV/atom.
    `per` units are a median absolute deviation."""
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
    """(n,) medians of the rows of (n, m) numbers, NaN left out; NaN where a row has no other."""
    ordered = np.sort(values, axis=1)  # NaN come last
    count = (~np.isnan(ordered)).sum(axis=1)
    at = np.arange(len(ordered))
    middle: Floats = 0.5 * (ordered[at, np.maximum(count - 1, 0) // 2] + ordered[at, count // 2])
    return middle


def _residuals(staged: Staged, rows: Rows) -> Floats:
    """(T,) eV/atom, what reference energies leave of the energies of some structures. Energies far off do not enter the
    fit: a single one in other units would shift its elements."""
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
                yield staged.n_atoms[some].astype(np.int64), staged.numbers_of(some), staged.energy[some]

    present = np.zeros(len(covalent_radii), np.bool_)
    for _, numbers, _ in chunks(kept):
        present[numbers] = True
    energies = fit_references(lambda: chunks(kept), np.flatnonzero(present)).energies
    residual, at = np.empty(len(rows)), 0
    for n, numbers, energy in chunks(np.ones(len(rows), np.bool_)):
        references = np.add.reduceat(energies[numbers], np.cumsum(n) - n)
        residual[at : at + len(n)] = (energy - references) / n
        at += len(n)
    residual[np.isnan(residual)] = 0.0  # of an element that only energies far off have: nothing to compare with
    return residual
