"""The virial of a prediction, for simulation programs that compute the pressure from it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray


def virial(atoms: Atoms, results: Mapping[str, Any]) -> NDArray[np.float64]:
    """(3, 3) eV, minus the derivative of the energy by strain: minus volume times stress.

    Of atoms without periodic axes the sum of r ⊗ f, which is the same; NaN for periodic structures with direct forces,
    so that a program which needs the pressure does not continue with a wrong one.

    Args:
        atoms: positions in Å, unwrapped if there are no periodic axes.
        results: forces in eV/Å, and stress in eV/Å³ where the branch predicts it, as ASE's calculators give them.
    """
    if "stress" in results:
        return np.asarray(-voigt_6_to_full_3x3_stress(results["stress"]) * atoms.cell.volume)
    if atoms.pbc.any():
        return np.full((3, 3), np.nan)
    return np.asarray(atoms.positions.T @ results["forces"])
