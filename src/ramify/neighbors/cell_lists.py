"""Neighbour search for one large structure by cell lists: vesin, or nvalchemi-toolkit-ops on an NVIDIA GPU.

Both are exact for skewed cells, cells smaller than the radius and any periodicity, and find the same pairs; the second
is used with CUDA if it is installed (https://github.com/NVIDIA/nvalchemi-toolkit-ops).
"""

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from ase.geometry import complete_cell
from numpy.typing import NDArray
from vesin import NeighborList

Floats = NDArray[np.float64]
Found = tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.integer], Floats]
"""Receiver (P,), sender (P,), lattice steps of the sender (P, 3), and distance (P,) in Å, in no particular order."""
CellList = Callable[[Floats, Floats, NDArray[np.bool_], float], Found]
"""Function of positions (N, 3) Å, cell (3, 3) Å, periodic axes (3,) and radius Å that finds all pairs within it."""

NEIGHBORS = 64
"""Initial capacity of neighbours per atom on a GPU, doubled until it is sufficient."""


def cell_list_for(device: str) -> CellList:
    """Selects the library for a device."""
    return by_nvalchemi if device == "cuda" and find_spec("nvalchemiops") is not None else by_vesin


def by_vesin(positions: Floats, cell: Floats, periodic: NDArray[np.bool_], radius: float) -> Found:
    """Neighbour search by one CPU thread."""
    receiver, sender, shift, distance = NeighborList(cutoff=radius, full_list=True, n_threads=1).compute(
        points=positions,
        box=cell,
        periodic=bool(periodic.all()) if periodic.all() or not periodic.any() else periodic,
        quantities="ijSd",
    )
    return receiver, sender, shift, distance


def by_nvalchemi(
    positions: Floats, cell: Floats, periodic: NDArray[np.bool_], radius: float, device: str = "cuda"
) -> Found:
    """Neighbour search by the current GPU, or by the CPU (`device="cpu"`), which is slower than vesin."""
    from nvalchemiops.neighbors.neighbor_utils import NeighborOverflowError
    from nvalchemiops.torch.neighbors import cell_list

    box = complete_cell(np.where(periodic[:, None], cell, 0.0))  # vectors without periodicity may be zero
    given = (np.ascontiguousarray(one) for one in (positions, box[None], periodic[None]))
    there = [torch.as_tensor(one, device=device) for one in given]
    room = NEIGHBORS
    while True:
        try:
            pairs, _, steps, *_ = cell_list(
                there[0], radius, there[1], there[2], max_neighbors=room, return_neighbor_list=True
            )
            break
        except NeighborOverflowError:
            room *= 2
    receiver, sender = pairs.cpu().numpy()
    shift = steps.cpu().numpy()
    vector = positions[sender] - positions[receiver] + shift @ box
    return receiver, sender, shift, np.linalg.norm(vector, axis=1)
