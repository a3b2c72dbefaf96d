"""Edges of a batch that has none yet, found on its device: the loader then reads and transfers positions only."""

from dataclasses import dataclass, replace

import torch

from ramify.batches.batch import Batch
from ramify.neighbors.device_edges import find_edges_on_device
from ramify.recipe.encoder import EncoderOptions


@dataclass(frozen=True, slots=True)
class EdgeSearch:
    """Completes batches without edges; others are returned as they are.

    Attributes:
        cutoff: Å.
        max_neighbors: maximum number of neighbours per atom, see `ramify.neighbors.edges`.
    """

    cutoff: float
    max_neighbors: int | None

    @classmethod
    def of(cls, encoder: EncoderOptions) -> "EdgeSearch":
        """The search for the edges of an encoder."""
        return cls(encoder.cutoff, encoder.max_neighbors)

    def __call__(self, batch: Batch) -> Batch:
        """The batch with its edges, on the same device. They are found in float64 from the positions of the batch."""
        if batch.cell is None or batch.periodic is None:
            return batch
        positions = batch.positions.detach().to(torch.float64)
        lattice = batch.cell, batch.periodic
        found = find_edges_on_device(positions, batch.structure, *lattice, self.cutoff, self.max_neighbors)
        pairs, cutoff_pairs, dtype = found.pairs, found.cutoff_pairs, batch.positions.dtype
        slots = int(torch.bincount(pairs.receiver, minlength=1).max())
        return replace(
            batch,
            receiver=pairs.receiver,
            sender=pairs.sender,
            shift=pairs.shift.to(dtype),
            slots=torch.arange(slots, device=positions.device),
            atom_cutoff=found.atom_cutoff.to(dtype),
            cutoff_receiver=cutoff_pairs.receiver,
            cutoff_sender=cutoff_pairs.sender,
            cutoff_shift=cutoff_pairs.shift.to(dtype),
            cutoff_gain=found.gain.to(dtype),
            cell=None,
            periodic=None,
        )
