"""Screening: structures that a branch cannot predict, and predictions that overflow or extrapolate."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.batches.conditions import missing_states, no_state_fix
from ramify.elements import NUMBERS, SYMBOLS
from ramify.errors import RamifyWarning
from ramify.inference.branches import BranchInfo, DatasetInfo
from ramify.neighbors.all_pairs import Pairs
from ramify.neighbors.distances import degenerate_cells
from ramify.sources.states import impossible_states
from ramify.structures import STATES, Structures

NO_ATOMS = "no atoms"
UNKNOWN_ELEMENT = "element that the branch never saw"
NON_FINITE = "position or cell is not a number"
NO_VOLUME = "periodic cell without volume"
COINCIDENT = "two atoms on one spot"
NO_STATE = "no charge or spin, which the model needs"
TOO_LARGE = "too large for the memory"
NON_FINITE_PREDICTION = "prediction is not a number"
NEW_STATE = "charge or spin that the branch never saw"
CLOSE = "atoms closer than in the training data"

ONE_SPOT = 0.05
"""Å; two atoms closer than this are treated as coincident. Nuclei are never that close (H2 at rest: 0.74 Å)."""
TOLERANCE = 1e-4
"""Å; stores keep positions in float32, so distances in a training structure may differ slightly from stored ones."""

Refused = dict[int, tuple[str, str]]
"""Reason and detail for each structure that cannot be predicted, by index."""


def screen(structures: Structures, branch: BranchInfo, dataset: DatasetInfo) -> Refused:
    """Structures that cannot be predicted with any weights."""
    refused: Refused = {}
    known = np.zeros(256, np.bool_)  # atomic numbers are bytes with any value
    known[[NUMBERS[symbol] for symbol in dataset.references]] = True
    finite = np.isfinite(structures.cell).all(axis=(1, 2))
    flat = np.zeros(len(structures), np.bool_)
    usable = np.flatnonzero(finite & structures.pbc.any(axis=1))
    if len(usable):
        flat[usable] = degenerate_cells(structures.cell[usable], structures.pbc[usable])
    of_atom = structures.structure_of_atom
    strange = np.bincount(of_atom[~known[structures.numbers]], minlength=len(structures))
    broken = np.bincount(of_atom[~np.isfinite(structures.positions).all(axis=1)], minlength=len(structures))
    for index in np.flatnonzero((structures.n_atoms == 0) | (strange > 0) | (broken > 0) | ~finite | flat).tolist():
        if structures.n_atoms[index] == 0:
            refused[index] = (NO_ATOMS, "it has 0 atoms")
        elif strange[index]:
            refused[index] = (UNKNOWN_ELEMENT, _strange(structures, index, branch, dataset))
        elif broken[index] or not finite[index]:
            refused[index] = (NON_FINITE, f"{broken[index]} of its atoms have no finite position, or the cell has none")
        else:
            box = np.array2string(structures.cell[index], precision=4, separator=", ").replace("\n", "")
            refused[index] = (NO_VOLUME, f"pbc {structures.pbc[index].tolist()}, cell {box}")
    return _states(structures, branch) | refused


def _states(structures: Structures, branch: BranchInfo) -> Refused:
    """Structures without a condition of the model, or with an impossible charge or spin."""
    if not branch.conditions:
        return {}
    refused: Refused = dict(impossible_states(structures))
    for name, rows in missing_states(branch.conditions, structures).items():
        for index in rows.tolist():
            reason, before = refused.get(index, ("", ""))
            also = f"{before}; " if reason == NO_STATE else ""
            refused[index] = (NO_STATE, f"{also}no {name}: {no_state_fix(name)}")
    return refused


def _strange(structures: Structures, index: int, branch: BranchInfo, dataset: DatasetInfo) -> str:
    first, last = structures.offsets[index : index + 2]
    there = {SYMBOLS[z] if z < len(SYMBOLS) else f"element {z}" for z in structures.numbers[first:last].tolist()}
    strange = ", ".join(sorted(there - set(dataset.elements)))
    where = "" if dataset.name == branch.name else f", dataset '{dataset.name}'"
    return f"it holds {strange}; branch '{branch.name}'{where} was trained on {' '.join(dataset.elements)}"


def closest_pairs(structures: Structures, pairs: Pairs) -> NDArray[np.float64]:
    """(S,) Å, the smallest distance in each structure; inf if it has no pair."""
    closest = np.full(len(structures), np.inf)
    np.minimum.at(closest, structures.structure_of_atom[pairs.receiver], pairs.distance)
    return closest


def screen_distances(closest: NDArray[np.float64]) -> Refused:
    """Structures with coincident atoms, from the smallest distances (S,) in Å."""
    return {
        index: (COINCIDENT, f"two of its atoms are {closest[index]:.4f} Å apart")
        for index in np.flatnonzero(closest < ONE_SPOT).tolist()
    }


def doubts(
    structures: Structures, closest: NDArray[np.float64], branch: BranchInfo, dataset: DatasetInfo
) -> Mapping[int, str]:
    """Structures for which the model extrapolates: with a smallest distance (S,) in Å below that of the training data,
    or with a charge or spin that the training data of the branch do not contain."""
    found = _new_states(structures, branch)
    if dataset.min_distance is None:
        return found
    for index in np.flatnonzero(closest < dataset.min_distance - TOLERANCE).tolist():
        why = f"{CLOSE}: {closest[index]:.3f} Å against {dataset.min_distance:.3f} Å"
        found[index] = f"{found[index]}; {why}" if index in found else why
    return found


def _new_states(structures: Structures, branch: BranchInfo) -> dict[int, str]:
    """Structures whose values of the conditions charge and spin occur together in no training structure."""
    trained, names = branch.trained_states(), [name for name in STATES if name in branch.conditions]
    if not trained:
        return {}
    known = ", ".join(sorted(_state_text(names, state) for state in trained))
    values = np.stack([getattr(structures, name) for name in names], axis=1).round()
    return {
        index: f"{NEW_STATE}: {_state_text(names, state)} against {known}"
        for index, state in enumerate(map(tuple, values.tolist()))
        if state not in trained
    }


def _state_text(names: Sequence[str], state: Sequence[float | None]) -> str:
    """For example `charge +1 spin 2`."""
    given = zip(names, state, strict=True)
    return " ".join(
        f"{name} {value:{'+' if value and name == 'charge' else ''}.0f}" for name, value in given if value is not None
    )


def screen_predictions(
    energy: NDArray[np.float64], forces: NDArray[np.float64] | None, n_atoms: NDArray[np.int64]
) -> Refused:
    """Structures with at least one atom each whose energy (S,) or forces (N, 3) are not finite."""
    overflow = ~np.isfinite(energy)
    if forces is not None:
        overflow |= np.logical_or.reduceat(~np.isfinite(forces).all(axis=1), np.cumsum(n_atoms) - n_atoms)
    why = (NON_FINITE_PREDICTION, "the model overflows on this structure")
    return dict.fromkeys(np.flatnonzero(overflow).tolist(), why)


class WarnOnce:
    """Warns of extrapolation once for each set of atoms and state, instead of at every step of a simulation."""

    def __init__(self) -> None:
        self._known: list[NDArray[Any]] = []
        self._warned = False

    def __call__(self, structures: Structures, doubted: Mapping[int, str], *, stacklevel: int) -> None:
        """Warns of the first of the structures in `doubted`, unless it warned of these atoms before."""
        now: list[NDArray[Any]] = [structures.numbers, structures.charge, structures.spin]
        if not self._known or not all(_equal(a, b) for a, b in zip(now, self._known, strict=True)):
            self._known, self._warned = now, False
        if doubted and not self._warned:
            index, why = next(iter(doubted.items()))
            which = "" if len(structures) == 1 else f"system {index}: "
            warnings.warn(f"extrapolation: {which}{why}", RamifyWarning, stacklevel=stacklevel + 1)
            self._warned = True


def _equal(first: NDArray[Any], second: NDArray[Any]) -> bool:
    return np.array_equal(first, second, equal_nan=first.dtype.kind == "f")
