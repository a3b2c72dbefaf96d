"""Rules for labels, common to all formats: a stress has a cell and is symmetric, an exact zero may be a placeholder."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.sources.base import DatasetOptions
from ramify.sources.chunks import STRESS_WITHOUT_CELL
from ramify.sources.quarantine import Quarantine, ranges
from ramify.structures import Structures

NOT_SYMMETRIC = "stress not symmetric (nine numbers in another order?), left out"
ASYMMETRY = 0.01
"""Maximum difference of a stress from its transpose, relative to its largest component: the stress of a structure
without a net torque is symmetric; a hundredth accepts labels with few digits."""

SMALL_STRESS = 1e-5
"""eV/Å³, about 1.6 MPa: differences below it are rounding."""

ZEROS_LEFT_OUT = "{label} of exact zeros, left out (zeros_are_absent)"
ZEROS_KEPT = "{label} of exact zeros, kept as a label: zeros_are_absent: [{label}] leaves it out"

Mask = NDArray[np.bool_]


def apply_label_rules(chunk: Structures, options: DatasetOptions, quarantine: Quarantine) -> Structures:
    """Removes meaningless labels from a chunk; labels left out and doubtful labels kept are recorded as remarks.

    - Stress without a periodic axis or with a cell of zero volume is undefined: left out.
    - A stress that is not symmetric was read in a wrong order, or is damaged: left out.
    - A label with only exact zeros was probably not computed. It is left out if `zeros_are_absent` names it, else kept.
      Zero forces or a zero energy of a single atom are not doubtful, nor are zero forces in a crystal with a non-zero
      stress (they follow from symmetry).
    """
    chunk = _meaningless_stress(chunk, quarantine)
    zero = _zero_labels(chunk)
    for label, rows in zero.items():
        absent = label in options.zeros_are_absent
        if absent and label == "forces":
            rows = _zero_forces(chunk)
        _remark(chunk, rows, (ZEROS_LEFT_OUT if absent else ZEROS_KEPT).format(label=label), quarantine)
        if absent and rows.any():
            chunk = _without(chunk, label, rows)
    return chunk


def _meaningless_stress(chunk: Structures, quarantine: Quarantine) -> Structures:
    labelled = ~np.isnan(chunk.stress).any(axis=(1, 2))
    if not labelled.any():
        return chunk
    rows = labelled & ((np.linalg.det(chunk.cell) == 0) | ~chunk.pbc.any(axis=1))
    largest = np.abs(chunk.stress).max(axis=(1, 2))
    skew = (
        labelled
        & ~rows
        & (np.abs(chunk.stress - chunk.stress.transpose(0, 2, 1)).max(axis=(1, 2)) > ASYMMETRY * largest + SMALL_STRESS)
    )
    _remark(chunk, rows, STRESS_WITHOUT_CELL, quarantine)
    _remark(chunk, skew, NOT_SYMMETRIC, quarantine)
    left_out = rows | skew
    return _without(chunk, "stress", left_out) if left_out.any() else chunk


def _zero_labels(chunk: Structures) -> dict[str, Mask]:
    """For each label, the structures for which exact zeros are doubtful."""
    several = chunk.n_atoms > 1
    stress: Mask = (chunk.stress == 0).all(axis=(1, 2))
    forces = _zero_forces(chunk)
    return {
        "energy": (chunk.energy == 0) & several,
        "forces": forces & (~chunk.pbc.any(axis=1) | stress),
        "stress": stress,
    }


def _zero_forces(chunk: Structures) -> Mask:
    """(S,) structures of several atoms with only zero forces."""
    moved = (chunk.forces != 0).any(axis=1)
    return (np.bincount(chunk.structure_of_atom[moved], minlength=len(chunk)) == 0) & (chunk.n_atoms > 1)


def _remark(chunk: Structures, rows: Mask, reason: str, quarantine: Quarantine) -> None:
    """Records one remark for all rows of an origin, because there may be millions."""
    for origin in np.unique(chunk.origin[rows]).tolist():
        found = np.sort(chunk.row[rows & (chunk.origin == origin)])
        quarantine.remark(f"{chunk.origin_names[origin]}[{ranges(found)}]", reason, count=len(found))


def _without(chunk: Structures, label: str, rows: Mask) -> Structures:
    values = np.array(getattr(chunk, label))
    changed: dict[str, Any] = {label: values}
    values[rows[chunk.structure_of_atom] if label == "forces" else rows] = np.nan
    return replace(chunk, **changed)
