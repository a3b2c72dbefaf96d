"""The structures with the largest errors: what the report lists, and the same as extended XYZ."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols
from ase.io.extxyz import write_xyz
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from ramify.evaluate.results import StoredPredictions
from ramify.labels import LABELS
from ramify.report.explore.pictures import picture
from ramify.report.svg import Drawing
from ramify.report.table_format import Quantity

WORST = 5
"""Number of structures listed for each dataset and label."""


@dataclass(frozen=True)
class WorstRow:
    """One structure: for labels of atoms, at the atom with the largest error; norms where a label is no number.

    Attributes:
        index: of the structure in the split.
        name, group: of the structure; group is empty where predictions were saved without structures.
        atom: the atom, such as `O 4` (counted from 0), or empty.
        label, prediction, error: in the label's unit of errors.
        drawing: None where predictions were saved without structures.
    """

    index: int
    name: str
    group: str
    atom: str
    label: float
    prediction: float
    error: float
    drawing: Drawing | None


@dataclass(frozen=True)
class Worst:
    """The largest errors of one label."""

    quantity: Quantity
    rows: list[WorstRow]


def worst(found: StoredPredictions) -> list[Worst]:
    """The structures with the largest errors of each label, largest first; labels without any are left out."""
    drawn: dict[int, Drawing] = {}
    return [Worst(q, rows) for q in found.true if (rows := _rows(found, q, drawn))]


def largest(found: StoredPredictions, quantity: Quantity) -> list[tuple[int, int]]:
    """Structure and row (an atom, or the structure again) of the largest errors, one for each structure."""
    values = np.nan_to_num(found.error_norms(quantity), nan=-1.0)  # -1: structures without a label are never listed
    if LABELS[quantity].per_atom:
        owner = np.repeat(np.arange(len(found.n_atoms)), found.n_atoms)
        rows = np.lexsort((np.arange(len(values)), -values))
        rows = rows[np.sort(np.unique(owner[rows], return_index=True)[1])][:WORST]
    else:
        rows = np.argsort(-values, kind="stable")[:WORST]
        owner = np.arange(len(values))
    return [(int(owner[row]), int(row)) for row in rows if values[row] >= 0]


def _rows(found: StoredPredictions, quantity: Quantity, drawn: dict[int, Drawing]) -> list[WorstRow]:
    first, rows = np.cumsum(found.n_atoms) - found.n_atoms, []
    for structure, row in largest(found, quantity):
        if found.geometry is not None and structure not in drawn:
            own, geometry = _atoms_of(found, structure), found.geometry
            drawn[structure] = picture(found.numbers[own], geometry.positions[own], geometry.cell[structure])
        atom = ""
        if LABELS[quantity].per_atom:
            atom = f"{chemical_symbols[found.numbers[row]]} {row - first[structure]}"
        rows.append(
            WorstRow(
                index=structure,
                name=str(found.names[structure]),
                group="" if found.geometry is None else str(found.geometry.groups[structure]),
                atom=atom,
                label=_number(found.true[quantity][row]),
                prediction=_number(found.predicted[quantity][row]),
                error=float(found.error_norms(quantity)[row]),
                drawing=drawn.get(structure),
            )
        )
    return rows


def _number(value: NDArray[np.floating]) -> float:
    """A number, or the norm of a vector or matrix."""
    return float(value) if np.ndim(value) == 0 else float(np.linalg.norm(value))


def _atoms_of(found: StoredPredictions, structure: int) -> slice:
    end = int(found.n_atoms[: structure + 1].sum())
    return slice(end - int(found.n_atoms[structure]), end)


def download(found: StoredPredictions, listed: Sequence[Worst]) -> str | None:
    """A `data:` address of the listed structures as extended XYZ; None where the structures were not saved.

    As in the files of `ramify predict`, `energy`, `forces` and `stress` are predictions, and names with `REF_` labels.
    Energies are totals in eV, reference energies included.
    """
    if found.geometry is None or not listed:
        return None
    indices = dict.fromkeys(row.index for entry in listed for row in entry.rows)
    text = io.StringIO()
    write_xyz(text, [_frame(found, index) for index in indices], write_results=True)
    return "data:text/plain;base64," + base64.b64encode(text.getvalue().encode()).decode()


def _frame(found: StoredPredictions, index: int) -> Atoms:
    own, geometry = _atoms_of(found, index), found.geometry
    assert geometry is not None
    atoms = Atoms(
        numbers=found.numbers[own],
        positions=geometry.positions[own],
        cell=geometry.cell[index],
        pbc=geometry.pbc[index],
        info={"name": str(found.names[index]), "group": str(geometry.groups[index])},
    )
    total = float(geometry.total_energy[index])
    error = float(found.predicted["energy"][index] - found.true["energy"][index])
    results: dict[str, object] = {}
    if np.isfinite(error):
        results["energy"] = total + error * int(found.n_atoms[index])
    atoms.info["REF_energy"] = total
    if np.isfinite(found.predicted["forces"][own]).all():
        results["forces"] = found.predicted["forces"][own].astype(np.float64)
    if np.isfinite(found.true["forces"][own]).all():
        atoms.arrays["REF_forces"] = found.true["forces"][own].astype(np.float64)
    for name in set(found.true) - {"energy", "forces"}:
        atoms.info[f"REF_{name}"] = found.true[name][index]
    if "stress" in found.predicted and np.isfinite(found.predicted["stress"][index]).all():
        results["stress"] = full_3x3_to_voigt_6_stress(found.predicted["stress"][index].astype(np.float64))
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms
