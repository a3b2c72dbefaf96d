"""`MultiBranch`: the encoder once over the whole batch, then each branch on its own segment."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ramify.batches.batch import Batch, Segment
from ramify.model.encoders.base import Encoder
from ramify.model.graph import build_graph
from ramify.model.heads import Branch


@dataclass(frozen=True, slots=True)
class BatchPredictions:
    """What the branches say about a batch; rows follow the batch.

    Attributes:
        energy: (S,) eV per atom, reference energies not included.
        forces: (N, 3) eV/Å; NaN where the branch has no force head.
        stress: (S, 3, 3) eV/Å³, tension positive; NaN for non-periodic structures and branches with direct forces.
            None when it was not asked for.
    """

    energy: Tensor
    forces: Tensor
    stress: Tensor | None


class MultiBranch(nn.Module):
    """One encoder and its branches, by name.

    Args:
        encoder: see `ramify.model.encoders.base.Encoder`.
        branches: heads by branch name.
        cutoff: Å.
    """

    def __init__(self, encoder: Encoder, branches: Mapping[str, Branch], cutoff: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.branches = nn.ModuleDict()
        for name, branch in branches.items():
            self.branches._modules[name] = branch  # as `add_module`, which refuses names like "train" and "items"
        self.cutoff = cutoff

    def branch(self, name: str) -> Branch:
        """The branch called `name`."""
        found = self.branches[name]
        assert isinstance(found, Branch)
        return found

    def forward(self, batch: Batch, *, stress: bool = False) -> BatchPredictions:
        """Predicts every segment by its own branch.

        Conservative forces are -dE/dx of the sum of all energies (structures do not touch, so each gets its own),
        stress is dE/dε / V for a symmetric strain ε applied to positions and cell.
        """
        differentiate = any(self.branch(s.name).forces == "conservative" for s in batch.segments)
        with torch.set_grad_enabled(torch.is_grad_enabled() or differentiate):
            positions, strain = batch.positions, None
            if differentiate:
                positions = positions.detach().requires_grad_()
                if stress:
                    strain = positions.new_zeros(len(batch.n_atoms), 3, 3).requires_grad_()
            symmetric = None if strain is None else 0.5 * (strain + strain.transpose(1, 2))
            scalars, vectors = self.encoder(build_graph(batch, self.cutoff, positions, symmetric))
            atom_energy = torch.cat([self.atom_energies(s, scalars) for s in batch.segments])
            total = atom_energy.new_zeros(len(batch.n_atoms)).index_add(0, batch.structure, atom_energy)
            minus_forces, virial = self._derivatives(total, positions, strain) if differentiate else (None, None)
        return BatchPredictions(
            energy=total / batch.n_atoms,
            forces=torch.cat([self.forces_of(s, scalars, vectors, minus_forces) for s in batch.segments]),
            stress=None if not stress else self.stress_of(batch, virial),
        )

    def atom_energies(self, segment: Segment, scalars: Tensor) -> Tensor:
        """(atoms of the segment,) eV, in at least float32 so that sums over atoms keep their digits."""
        branch = self.branch(segment.name)
        energy: Tensor = branch.energy(scalars[segment.atoms])
        return energy.to(branch.energy_scale.dtype) * branch.energy_scale

    def _derivatives(self, total: Tensor, positions: Tensor, strain: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """dE/dx (N, 3) and dE/dε (S, 3, 3); differentiable once more while gradients are on (training)."""
        wanted = [positions] if strain is None else [positions, strain]
        found = torch.autograd.grad(total.sum(), wanted, create_graph=self.training, allow_unused=True)
        filled = [torch.zeros_like(w) if f is None else f for f, w in zip(found, wanted, strict=True)]
        return filled[0], filled[1] if strain is not None else None

    def forces_of(
        self, segment: Segment, scalars: Tensor, vectors: Tensor | None, minus_forces: Tensor | None
    ) -> Tensor:
        """(atoms of the segment, 3) eV/Å; NaN without a force head."""
        branch = self.branch(segment.name)
        if branch.forces == "conservative":
            assert minus_forces is not None
            return -minus_forces[segment.atoms]
        if branch.force is None:
            atoms = segment.atoms.stop - segment.atoms.start
            return branch.forces_scale.new_full((atoms, 3), torch.nan)
        assert vectors is not None, "`build_model` refuses direct forces from an encoder without vectors"
        forces: Tensor = branch.force(scalars[segment.atoms], vectors[segment.atoms])
        return forces.to(branch.forces_scale.dtype) * branch.forces_scale

    def stress_of(self, batch: Batch, virial: Tensor | None) -> Tensor:
        """(S, 3, 3) eV/Å³ from dE/dε; NaN where there is no cell, and no derivative to take."""
        if virial is None:
            return batch.volume.new_full((len(batch.volume), 3, 3), torch.nan)
        stress = virial / batch.volume.clamp(min=1e-12)[:, None, None]
        known = torch.zeros_like(batch.volume, dtype=torch.bool)
        for segment in batch.segments:
            known[segment.structures] = self.branch(segment.name).forces == "conservative"
        return torch.where((known & (batch.volume > 0))[:, None, None], stress, torch.nan)
