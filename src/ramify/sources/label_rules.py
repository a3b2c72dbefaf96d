"""Rules for labels that hold in every format: a stress needs a cell, and a zero may stand for what was never
computed."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.sources.base import DatasetOptions
from ramify.sources.chunks import STRESS_WITHOUT_CELL
from ramify.sources.quarantine import Quarantine, ranges
from ramify.structures import Structures

ZEROS_LEFT_OUT = "{label} of exact zeros, left out (zeros_are_absent)"
ZEROS_KEPT = "{label} of exact zeros, kept as a label: zeros_are_absent: [{label}] leaves it out"

Mask = NDArray[np.bool_]


def apply_label_rules(chunk: Structures, options: DatasetOptions, quarantine: Quarantine) -> Structures:
    """The chunk without labels that mean nothing; every label left out, and every doubtful one kept, is remarked.

    - Stress without a periodic axis or with a cell of no volume refers to nothing: left out.
    - A label whose numbers are all exactly zero was hardly ever computed. It is left out where `zeros_are_absent` names
      it, else kept. Of a single atom neither zero forces nor a zero energy are doubtful; nor are zero forces in a
      crystal whose stress is not zero (symmetry makes them so).
    """
    chunk = _without_cell(chunk, quarantine)
    zero = _zero_labels(chunk)
    for label, rows in zero.items():
        absent = label in options.zeros_are_absent
        if absent and label == "forces":
            rows = _zero_forces(chunk)
        _remark(chunk, rows, (ZEROS_LEFT_OUT if absent else ZEROS_KEPT).format(label=label), quarantine)
        if absent and rows.any():
            chunk = _without(chunk, label, rows)
    return chunk


def _without_cell(chunk: Structures, quarantine: Quarantine) -> Structures:
    labelled = ~np.isnan(chunk.stress).any(axis=(1, 2))
    if not labelled.any():
        return chunk
    rows = labelled & ((np.linalg.det(chunk.cell) == 0) | ~chunk.pbc.any(axis=1))
    _remark(chunk, rows, STRESS_WITHOUT_CELL, quarantine)
    return _without(chunk, "stress", rows) if rows.any() else chunk


def _zero_labels(chunk: Structures) -> dict[str, Mask]:
    """Structures whose label is doubtful for its zeros."""
    several = chunk.n_atoms > 1
    stress: Mask = (chunk.stress == 0).all(axis=(1, 2))
    forces = _zero_forces(chunk)
    return {
        "energy": (chunk.energy == 0) & several,
        "forces": forces & (~chunk.pbc.any(axis=1) | stress),
        "stress": stress,
    }


def _zero_forces(chunk: Structures) -> Mask:
    """(S,) structures of several atoms on none of which there is a force."""
    moved = (chunk.forces != 0).any(axis=1)
    return (np.bincount(chunk.structure_of_atom[moved], minlength=len(chunk)) == 0) & (chunk.n_atoms > 1)


def _remark(chunk: Structures, rows: Mask, reason: str, quarantine: Quarantine) -> None:
    """One line for all rows of an origin: there may be millions."""
    for origin in np.unique(chunk.origin[rows]).tolist():
        found = np.sort(chunk.row[rows & (chunk.origin == origin)])
        quarantine.remark(f"{chunk.origin_names[origin]}[{ranges(found)}]", reason, count=len(found))


def _without(chunk: Structures, label: str, rows: Mask) -> Structures:
    values = np.array(getattr(chunk, label))
    changed: dict[str, Any] = {label: values}
    values[rows[chunk.structure_of_atom] if label == "forces" else rows] = np.nan
    return replace(chunk, **changed)
