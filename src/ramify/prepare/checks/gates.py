"""Quality gates for single structures: structures that fail are counted and listed, never changed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ramify.elements import MAX_NUMBER
from ramify.neighbors.distances import closest_distances, degenerate_cells
from ramify.sources.base import Gates
from ramify.structures import Structures

NO_ATOMS = "no atoms"
UNKNOWN_ELEMENT = "unknown element"
NON_FINITE_GEOMETRY = "non-finite position or cell"
NO_ENERGY = "energy label missing"
NON_FINITE_LABEL = "non-finite label"
NO_VOLUME = "periodic cell without volume"
TOO_CLOSE = "atoms too close"
LARGE_FORCE = "force above limit"
DUPLICATE = "duplicate structure"
CONFLICT = "equal geometry, other labels"
OUTLIER = "energy outlier within its composition"

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Screening:
    """Result of screening a chunk of S structures.

    Attributes:
        failures: (S,) first gate that each structure fails: 0 for none, else 1 + its index in `reasons`.
        reasons: the gates, in the order in which they are applied.
        details: (S,) measured value of the failed gate, or NaN.
        closest: (S,) Å, distance of the closest two atoms, images included; inf for a single atom.
        max_force: (S,) eV/Å, largest norm of a force; NaN without force labels.
    """

    failures: NDArray[np.int8]
    reasons: tuple[str, ...]
    details: NDArray[np.float64]
    closest: NDArray[np.float64]
    max_force: NDArray[np.float64]


def screen(structures: Structures, gates: Gates) -> Screening:
    """Applies all gates for single structures.

    A label is absent if all its values are NaN, and non-finite if only some are, or if any is infinite. An absent
    energy fails; absent forces or stress do not.
    """
    S = len(structures)
    failures = np.zeros(S, np.int8)
    details = np.full(S, np.nan)
    reasons: list[str] = []

    def fail(failed: Mask, reason: str, measured: NDArray[np.floating] | None = None) -> None:
        reasons.append(reason)
        new = failed & (failures == 0)
        failures[new] = len(reasons)
        if measured is not None:
            details[new] = measured[new]

    forces_finite, forces_absent, max_force = _force_labels(structures)
    number = _per_structure(np.maximum, structures.numbers, structures, 0)
    unknown = (number > MAX_NUMBER) | (_per_structure(np.minimum, structures.numbers, structures, 1) < 1)
    geometry = _all_finite(structures.positions, structures)
    if not np.isfinite(structures.cell.sum()):
        geometry &= np.isfinite(structures.cell).all(axis=(1, 2))
    fail(structures.n_atoms < 1, NO_ATOMS)
    fail(unknown, UNKNOWN_ELEMENT)
    fail(~geometry, NON_FINITE_GEOMETRY)
    fail(np.isnan(structures.energy), NO_ENERGY)
    infinite = np.isinf(structures.energy)
    for values in structures.labels.values():
        infinite = infinite | np.isinf(values)
    fail(infinite | ~(forces_finite | forces_absent) | _broken_stress(structures), NON_FINITE_LABEL)
    flat = np.zeros(S, np.bool_)
    usable = np.flatnonzero(structures.pbc.any(axis=1) & geometry)
    flat[usable] = degenerate_cells(structures.cell[usable], structures.pbc[usable])
    fail(flat, NO_VOLUME)
    closest = _closest_where(structures, failures == 0)
    fail(closest < gates.min_distance, TOO_CLOSE, closest)
    fail(max_force > gates.max_force, LARGE_FORCE, max_force)
    return Screening(failures, tuple(reasons), details, closest, max_force)


def detail(reason: str, measured: float, gates: Gates) -> str:
    """Detail of a failure for the quarantine file."""
    if reason == TOO_CLOSE:
        return f"closest atoms {measured:.4f} Å apart, limit {gates.min_distance:g} Å"
    if reason == LARGE_FORCE:
        return f"largest force {measured:.4g} eV/Å, limit {gates.max_force:g} eV/Å"
    return ""


def _force_labels(structures: Structures) -> tuple[Mask, Mask, NDArray[np.float64]]:
    """Whether each structure's forces are finite, or absent altogether, and their largest norm."""
    squared = np.einsum("nc,nc->n", structures.forces, structures.forces, dtype=np.float64)
    largest = np.sqrt(_per_structure(np.maximum, squared, structures, 0.0))
    if np.isfinite(squared.sum()):
        yes = np.ones(len(structures), np.bool_)
        return yes, ~yes, largest
    finite = _all_finite(structures.forces, structures)
    absent = _per_structure(np.logical_and, np.isnan(structures.forces).all(axis=1), structures, True)
    return finite, absent & ~finite, largest


def _broken_stress(structures: Structures) -> Mask:
    """(S,) whether the stress is neither finite nor absent."""
    finite, absent = np.isfinite(structures.stress), np.isnan(structures.stress)
    if finite.all() or absent.all():
        return np.zeros(len(structures), np.bool_)
    broken: Mask = ~finite.all(axis=(1, 2)) & ~absent.all(axis=(1, 2))
    return broken


def _all_finite(values: NDArray[np.floating], structures: Structures) -> Mask:
    """(S,) whether all (N, 3) values of each structure are finite."""
    if np.isfinite(values.sum(dtype=np.float64)):  # a sum is finite only if its terms are
        return np.ones(len(structures), np.bool_)
    return _per_structure(np.logical_and, np.isfinite(values).all(axis=1), structures, True)


def _per_structure(reduce: np.ufunc, values: NDArray[np.generic], structures: Structures, empty: object) -> NDArray:  # type: ignore[type-arg]
    """(S,) `reduce` over the atoms of each structure, `empty` where there are none."""
    result = np.full(len(structures), empty, values.dtype)
    some = np.flatnonzero(structures.n_atoms > 0)
    if len(some):
        result[some] = reduce.reduceat(values, structures.offsets[some])
    return result


def _closest_where(structures: Structures, usable: Mask) -> NDArray[np.float64]:
    """(S,) closest distances of the `usable` structures, inf elsewhere."""
    closest = np.full(len(structures), np.inf)
    if usable.all():
        return closest_distances(structures)
    closest[usable] = closest_distances(structures.take(np.flatnonzero(usable)))
    return closest
