"""Tensors of one pass, and forces and stress from its derivatives, both in float64 on the host.

Edge vectors r_e = x_j - x_i + shift are computed in float64 and cast afterwards: at 10,000 Å, the float32 rounding
error of a position is up to 5e-4 Å, that of the difference only 1e-7 of its length. With g_e = dE/dr_e,
    F_i = Σ_{e from i} g_e - Σ_{e to i} g_e,    dE/dε = Σ_e (r_e g_eᵀ + g_e r_eᵀ) / 2    for r → r (1 + ε),
where ε is symmetric, i is the receiver of the first sum and the sender of the second. The adaptive cutoff c_i of an
atom depends on the distances of its cutoff pairs (`ramify.neighbors.edges`), each of which adds an edge with
g = dE/dc_i dc_i/dd r/d.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ramify.batches.batch import Batch
from ramify.model.graph import Graph, edge_geometry
from ramify.neighbors.all_pairs import Pairs
from ramify.neighbors.edges import CutoffPairs, Edges
from ramify.structures import Structures

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PassInputs:
    """S structures with N atoms and E edges, as tensors on one device.

    Attributes:
        numbers: (N,) int64, atomic numbers.
        structure: (N,) int64, the structure of each atom.
        n_atoms: (S,) atoms of each structure.
        receiver, sender: (E,) int64, sorted by receiver.
        vector: (E, 3) Å, from receiver to sender.
        atom_cutoff: (N,) Å, adaptive cutoffs.
        slots: (n,) int64, 0, 1, ... n - 1; no atom has more than n neighbours.
        conditions: (N, C) values of the conditions of the model for the structure of each atom; None without.
    """

    numbers: Tensor
    structure: Tensor
    n_atoms: Tensor
    receiver: Tensor
    sender: Tensor
    vector: Tensor
    atom_cutoff: Tensor
    slots: Tensor
    conditions: Tensor | None

    def graph(self) -> Graph:
        """The input of an encoder."""
        distance = torch.linalg.vector_norm(self.vector, dim=1)
        pairs = self.receiver, self.sender, self.vector, distance
        return edge_geometry(self.numbers, *pairs, self.atom_cutoff, self.slots, self.conditions)


def edge_vectors(structures: Structures, pairs: Edges | CutoffPairs | Pairs, structure: NDArray[np.int64]) -> Floats:
    """(E, 3) Å, float64, from receiver to sender; `structure` is (N,) the structure of each atom."""
    positions = structures.positions
    found = positions.take(pairs.sender, axis=0).astype(np.float64, copy=False)
    found -= positions.take(pairs.receiver, axis=0)
    if pairs.shift.any():
        cells = structures.cell.astype(np.float64, copy=False)
        if len(cells) == 1:
            found += pairs.shift.astype(np.float64) @ cells[0]  # products of integers are slow
        else:
            found += np.einsum("ek,ekc->ec", pairs.shift, cells[structure[pairs.receiver]])
    return found


def with_edge_vectors(batch: Batch, structures: Structures, edges: Edges) -> Batch:
    """The batch of `structures` and `edges` with every atom at the origin and the vector between two atoms in the shift
    of their edge. A model uses positions only as x_j + shift - x_i: energies, forces and stress do not change."""

    def vectors(pairs: Edges | CutoffPairs) -> Tensor:
        found = edge_vectors(structures, pairs, structures.structure_of_atom)
        return torch.from_numpy(found).to(batch.shift.dtype)

    origin = torch.zeros_like(batch.positions)
    return replace(batch, positions=origin, shift=vectors(edges), cutoff_shift=vectors(edges.cutoff_pairs))


@torch.inference_mode(False)  # tensors made in inference mode cannot be differentiated
def pass_inputs(
    structures: Structures,
    edges: Edges,
    structure: NDArray[np.int64],
    vector: Floats,
    conditions: Floats | None,
    dtype: torch.dtype,
    device: torch.device,
) -> PassInputs:
    """Tensors of structures with edges (E,) of vectors (E, 3) Å and conditions (S, C), in floats of type `dtype`."""
    kind = np.float64 if dtype == torch.float64 else np.float32

    def real(array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array.astype(kind)).to(device)

    def index(array: NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(array.astype(np.int64, copy=False)).to(device)

    widest = int(np.bincount(edges.receiver, minlength=1).max())
    return PassInputs(
        numbers=index(structures.numbers),
        structure=index(structure),
        n_atoms=real(structures.n_atoms),
        receiver=index(edges.receiver),
        sender=index(edges.sender),
        vector=real(vector),
        atom_cutoff=real(edges.atom_cutoff),
        slots=torch.arange(widest, device=device),
        conditions=None if conditions is None else real(conditions[structure]),
    )


@dataclass(frozen=True, slots=True)
class EdgeSlopes:
    """dE/dr of edges, cutoff pairs included.

    Attributes:
        receiver, sender: (P,).
        vector: (P, 3) Å.
        slope: (P, 3) eV/Å.
    """

    receiver: NDArray[np.int64]
    sender: NDArray[np.int64]
    vector: Floats
    slope: Floats

    @classmethod
    def of(cls, edges: Edges, vector: Floats, slope: Floats, of_cutoff: Floats, rim: Floats) -> "EdgeSlopes":
        """From the slopes of edges (E, 3) and of adaptive cutoffs (N,), eV/Å; `rim` is (H, 3) the vectors of the cutoff
        pairs."""
        pairs = edges.cutoff_pairs
        if not len(pairs):
            return cls(edges.receiver, edges.sender, vector, slope)
        along = of_cutoff[pairs.receiver] * pairs.gain / np.sqrt(np.einsum("hc,hc->h", rim, rim))
        return cls(
            np.concatenate([edges.receiver, pairs.receiver]),
            np.concatenate([edges.sender, pairs.sender]),
            np.concatenate([vector, rim]),
            np.concatenate([slope, along[:, None] * rim]),
        )

    def forces(self, n_atoms: int) -> Floats:
        """(N, 3) eV/Å."""
        found = np.empty((n_atoms, 3))
        for axis in range(3):
            along = self.slope[:, axis]
            found[:, axis] = np.bincount(self.receiver, along, n_atoms)
            found[:, axis] -= np.bincount(self.sender, along, n_atoms)
        return found

    def virial(self, structure: NDArray[np.int64], structures: int) -> Floats:
        """(S, 3, 3) eV, dE/dε of each structure; `structure` is (N,) the structure of each atom."""
        if structures == 1:
            whole: Floats = (self.vector.T @ self.slope)[None]
        else:
            of_pair = structure[self.receiver]
            whole = np.empty((structures, 3, 3))
            for a in range(3):
                for b in range(3):
                    whole[:, a, b] = np.bincount(of_pair, self.vector[:, a] * self.slope[:, b], structures)
        return 0.5 * (whole + whole.transpose(0, 2, 1))
