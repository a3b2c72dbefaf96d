"""Errors of predictions against the labels in a file of structures, as sums accumulated over chunks.

Labels are those of ASE: `energy` (eV, total), `forces` (eV/Å), `stress` (eV/Å³, tension positive), as results of
a calculator or, if it has none, as `REF_energy`, `REF_forces`, `REF_stress`; further labels in `info`, by their name or
with `REF_`.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray

from ramify.inference.predictions import Prediction
from ramify.labels import LABELS, further

Sums = dict[str, list[float]]
"""By quantity: the count, the sum of absolute errors, and the sum of squared errors."""

UNITS = {"energy": "eV", "energy_per_atom": "eV/atom", "forces": "eV/Å", "stress": "eV/Å³"}
"""Units of the quantities; forces and stress per component."""
AXES = ("x", "y", "z")


def add_errors(sums: Sums, atoms: Atoms, found: Prediction) -> None:
    """Adds one structure; only labels that are finite and have the right shape count."""
    n = len(atoms)
    energy = _label(atoms, "energy", ())
    if energy is not None:
        error = np.atleast_1d(found.energy - energy)
        _add(sums, "energy", error)
        _add(sums, "energy_per_atom", error / n)
    forces = _label(atoms, "forces", (n, 3))
    if forces is not None and found.forces is not None:
        _add(sums, "forces", found.forces - forces)
        for axis, column in zip(AXES, (found.forces - forces).T, strict=True):
            _add(sums, f"forces_{axis}", column)
    stress = _label(atoms, "stress", (6,))
    full = _label(atoms, "stress", (3, 3)) if stress is None else voigt_6_to_full_3x3_stress(stress)
    if full is not None and found.stress is not None:
        _add(sums, "stress", found.stress - full)
    for name, value in found.labels.items():
        label = _label(atoms, name, ())
        if label is not None:
            _add(sums, name, np.atleast_1d(value - (label / n if LABELS[name].extensive else label)))


def results(sums: Sums) -> dict[str, dict[str, float]]:
    """MAE and RMSE by quantity, and the number of structures or components they are averaged over."""
    return {
        name: {"mae": absolute / count, "rmse": math.sqrt(squares / count), "count": int(count)}
        for name, (count, absolute, squares) in sums.items()
        if count
    }


def lines(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Text for the terminal: one line per quantity."""
    texts = []
    for name, unit in (UNITS | {name: LABELS[name].error_unit for name in further()}).items():
        if name in found:
            entry = found[name]
            line = f"{name.replace('_', ' ')}: MAE {entry['mae']:.4g}, RMSE {entry['rmse']:.4g} {unit}"
            if name == "forces":
                parts = [f"{axis} {found[f'forces_{axis}']['mae']:.4g}" for axis in AXES]
                line += f" per component (MAE of {', '.join(parts)})"
            texts.append(
                f"{line}, {entry['count']:.0f} {'components' if name in ('forces', 'stress') else 'structures'}"
            )
    return texts


def _label(atoms: Atoms, name: str, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """The label of a structure; None if it is missing, not finite or of another shape."""
    stated: Any = None if atoms.calc is None else atoms.calc.results.get(name)
    if stated is None:
        place = atoms.arrays if name == "forces" else atoms.info
        stated = place.get(f"REF_{name}", place.get(name) if name in further() else None)
    try:
        label = np.asarray(stated, np.float64)
    except (TypeError, ValueError):
        return None
    return label if label.shape == shape and np.isfinite(label).all() else None


def _add(sums: Sums, name: str, error: NDArray[np.float64]) -> None:
    before = sums.get(name, [0.0, 0.0, 0.0])
    more = (error.size, float(np.abs(error).sum()), float(np.square(error).sum()))
    sums[name] = [a + b for a, b in zip(before, more, strict=True)]
