"""Structures far from the origin, brought near it before their positions are cast to float32.

A float32 of 1,000 Å has a step of 6e-5 Å, of 10,000 Å one of 1e-3 Å: distances would be rounded by as much. Energies,
forces and stress do not change when a structure moves as a whole, or an atom by a lattice vector.
"""

import numpy as np
from numpy.typing import NDArray

from ramify.neighbors.distances import complete_cells
from ramify.structures import Structures

FAR = 64.0
"""Å; below it a float32 is exact to 4e-6 Å, which moves a force by 4e-4 eV/Å even in the stiffest bonds. Structures
within it stay where they are."""


def displacements(structures: Structures) -> NDArray[np.float64] | None:
    """(N, 3) Å, in float64: what to take off positions so that atoms far from the origin come near it; None where no
    atom is farther than `FAR` along any axis.

    Along periodic axes each atom moves by whole lattice vectors into the cell, along the others the whole structure
    moves. Cells must have a volume.
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
