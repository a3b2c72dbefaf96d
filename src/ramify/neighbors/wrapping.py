"""Translation of structures far from the origin, before their positions are cast to float32.

The spacing of float32 at 1,000 Å is 6e-5 Å, at 10,000 Å 1e-3 Å, and distances would be rounded accordingly. Energies,
forces and stress are invariant to translations of a structure and of atoms by lattice vectors.
"""

import numpy as np
from numpy.typing import NDArray

from ramify.neighbors.distances import complete_cells
from ramify.structures import Structures

FAR = 64.0
"""Å; below it, float32 is accurate to 4e-6 Å, which changes forces by 4e-4 eV/Å even in the stiffest bonds. Structures
within it are not moved."""


def displacements(structures: Structures) -> NDArray[np.float64] | None:
    """(N, 3) Å, float64 displacements to subtract from positions so that all atoms are close to the origin; None if no
    atom is farther than `FAR` along any axis.

    Along periodic axes, each atom is wrapped into the cell by lattice vectors; along the others, the structure is
    translated as a whole. Cells must have a volume.
    """
    if not len(structures.positions) or max(structures.positions.max(), -structures.positions.min()) <= FAR:
        return None
    beyond = np.abs(structures.positions).max(axis=1) > FAR
    rows = np.unique(structures.structure_of_atom[beyond])
    some = structures.take(rows)
    of_atom, starts = some.structure_of_atom, some.offsets[:-1]
    cell = complete_cells(some.cell.astype(np.float64), some.pbc, np.ones(len(rows)))
    place = np.einsum("nc,nck->nk", some.positions.astype(np.float64), np.linalg.inv(cell)[of_atom])
    middle = (np.maximum.reduceat(place, starts, axis=0) + np.minimum.reduceat(place, starts, axis=0)) / 2
    steps = np.where(some.pbc[of_atom], np.floor(place), middle[of_atom])
    found = np.zeros(structures.positions.shape)
    found[np.isin(structures.structure_of_atom, rows)] = np.einsum("nk,nkc->nc", steps, cell[of_atom])
    return found
