"""`MultiBranch`: applies the encoder once to the whole batch, then each branch to its own segment."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ramify.batches.batch import Batch, Segment
from ramify.model.branch import Branch
from ramify.model.encoders.base import Encoder
from ramify.model.graph import Graph, build_graph
from ramify.model.lora import is_lora_weight


@dataclass(frozen=True, slots=True)
class BatchPredictions:
    """The predictions for a batch; rows follow the batch.

    Attributes:
        energy: (S,) eV per atom, reference energies not included.
        forces: (N, 3) eV/Å; NaN where the branch has no force head.
        stress: (S, 3, 3) eV/Å³, tension positive; NaN for non-periodic structures and branches with direct forces.
            None when it was not requested.
        further: further labels by name, (S,) in their units of errors; NaN where the branch has no such head.
    """

    energy: Tensor
    forces: Tensor
    stress: Tensor | None
    further: Mapping[str, Tensor] = field(default_factory=dict)

    def labels(self) -> dict[str, Tensor]:
        """All predictions by label."""
        found = {"energy": self.energy, "forces": self.forces} | dict(self.further)
        return found if self.stress is None else found | {"stress": self.stress}


class MultiBranch(nn.Module):
    """One encoder and several branches, by name.

    Args:
        encoder: see `ramify.model.encoders.base.Encoder`.
        branches: heads by branch name.
        cutoff: Å.
        repulsion: energies of atoms (N,), eV, from the graph, added to those of the conservative branches.
    """

    def __init__(
        self, encoder: Encoder, branches: Mapping[str, Branch], cutoff: float, repulsion: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.branches = nn.ModuleDict()
        for name, branch in branches.items():
            self.branches._modules[name] = branch  # like `add_module`, which refuses names like "train" and "items"
        self.cutoff = cutoff
        self.repulsion = repulsion

    def branch(self, name: str) -> Branch:
        """The branch with this name."""
        found = self.branches[name]
        assert isinstance(found, Branch)
        return found

    def forward(self, batch: Batch, *, stress: bool = False) -> BatchPredictions:
        """Predicts every segment with its own branch.

        Conservative forces are -dE/dx of the sum of all energies (structures do not interact, so this gives the forces
        of each); stress is dE/dε / V for a symmetric strain ε applied to positions and cell.
        """
        differentiate = any(self.branch(s.name).forces == "conservative" for s in batch.segments)
        with torch.set_grad_enabled(torch.is_grad_enabled() or differentiate):
            positions, strain = batch.positions, None
            if differentiate:
                positions = positions.detach().requires_grad_()
                if stress:
                    strain = positions.new_zeros(len(batch.n_atoms), 3, 3).requires_grad_()
            graph = build_graph(batch, self.cutoff, positions, symmetric(strain))
            scalars, vectors = self.encoder(graph)
            total = structure_energies(self.atom_energies(self.heads(batch), scalars, graph), batch)
            minus_forces, virial = self._derivatives(total, positions, strain) if differentiate else (None, None)
        return self.predictions(batch, total, scalars, vectors, minus_forces, virial, stress=stress)

    def predictions(
        self,
        batch: Batch,
        total: Tensor,
        scalars: Tensor | None,
        vectors: Tensor | None,
        minus_forces: Tensor | None,
        virial: Tensor | None,
        *,
        stress: bool,
    ) -> BatchPredictions:
        """Predictions from energies (S,), scalars and vectors of atoms, dE/dx (N, 3) and dE/dε (S, 3, 3); unused
        features may be None. Padding rows that belong to no segment are zero."""
        forces = [self._forces(s, scalars, vectors, minus_forces) for s in batch.segments]
        return BatchPredictions(
            energy=total / batch.n_atoms,
            forces=with_gaps(batch.segments, forces, len(batch.numbers)),
            stress=None if not stress else self._stress(batch, virial),
            further=self._further(batch, scalars),
        )

    def _further(self, batch: Batch, scalars: Tensor | None) -> dict[str, Tensor]:
        """Predictions of the heads of further labels."""
        found: dict[str, Tensor] = {}
        for segment in batch.segments:
            rows, atoms = segment.structures, segment.atoms
            for name, head in self.branch(segment.name).labels.items():
                assert scalars is not None
                if name not in found:
                    found[name] = torch.full_like(batch.energy, torch.nan)
                predicted = head(scalars[atoms], batch.structure[atoms] - rows.start, batch.n_atoms[rows])
                places = torch.arange(rows.start, rows.stop, device=predicted.device)
                found[name] = found[name].index_copy(0, places, predicted)
        return found

    def atom_energies(self, heads: "EnergyHeads", scalars: Tensor, graph: Graph) -> Tensor:
        """(N,) eV, reference energies not included: those of the heads, plus `repulsion`."""
        energy = heads(scalars)
        return energy if self.repulsion is None else energy + self.repulsion(graph)

    def heads(self, batch: Batch) -> "EnergyHeads":
        """A function that applies the energy head of every branch to its segment of a batch."""

        def read(scalars: Tensor) -> Tensor:
            energies = [self.branch(s.name).atom_energies(scalars[s.atoms]) for s in batch.segments]
            return with_gaps(batch.segments, energies, len(scalars))

        return read

    def _derivatives(self, total: Tensor, positions: Tensor, strain: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """dE/dx (N, 3) and dE/dε (S, 3, 3); differentiable once more in training mode."""
        wanted = [positions] if strain is None else [positions, strain]
        found = torch.autograd.grad(total.sum(), wanted, create_graph=self.training, allow_unused=True)
        filled = [torch.zeros_like(w) if f is None else f for f, w in zip(found, wanted, strict=True)]
        return filled[0], filled[1] if strain is not None else None

    def _forces(
        self, segment: Segment, scalars: Tensor | None, vectors: Tensor | None, minus_forces: Tensor | None
    ) -> Tensor:
        """(atoms of the segment, 3) eV/Å; NaN without a force head."""
        branch = self.branch(segment.name)
        if branch.forces == "conservative":
            assert minus_forces is not None
            return -minus_forces[segment.atoms]
        if branch.force is None or scalars is None:
            count = segment.atoms.stop - segment.atoms.start
            return branch.forces_scale.new_full((count, 3), torch.nan)
        assert vectors is not None, "`build_model` refuses direct forces from an encoder without vectors"
        return branch.direct_forces(scalars[segment.atoms], vectors[segment.atoms])

    def _stress(self, batch: Batch, virial: Tensor | None) -> Tensor:
        """(S, 3, 3) eV/Å³ from dE/dε; NaN without a cell, and for branches without conservative forces."""
        if virial is None:
            return batch.volume.new_full((len(batch.volume), 3, 3), torch.nan)
        stress = virial / batch.volume.clamp(min=1e-12)[:, None, None]
        known = torch.zeros_like(batch.volume, dtype=torch.bool)
        for segment in batch.segments:
            known[segment.structures] = self.branch(segment.name).forces == "conservative"
        return torch.where((known & (batch.volume > 0))[:, None, None], stress, torch.nan)


SMALLEST_SIDE = 8
"""Smallest dimension of a hidden matrix: the outputs of heads (1, or the number of vector channels) are too few for
orthogonalisation to matter."""


def hidden_matrices(model: nn.Module) -> set[str]:
    """Names of the parameters that are matrices between layers, which Muon updates: no vectors, no embeddings, no
    outputs of heads, which have few rows, and no factors of low-rank updates."""
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    matrices = ((name, p) for name, p in model.named_parameters() if p.ndim == 2 and id(p) not in embeddings)
    return {name for name, p in matrices if min(p.shape) >= SMALLEST_SIDE and not is_lora_weight(name)}


EnergyHeads = Callable[[Tensor], Tensor]
"""Scalars (N, F) -> energies of atoms (N,), eV: several energy heads, each on its own atoms."""


def structure_energies(energy: Tensor, batch: Batch) -> Tensor:
    """(S,) eV, sums over the atoms (N,) of each structure."""
    return energy.new_zeros(batch.n_atoms.shape).index_add(0, batch.structure, energy)


def symmetric(strain: Tensor | None) -> Tensor | None:
    """The symmetric part of a strain (S, 3, 3)."""
    return None if strain is None else 0.5 * (strain + strain.transpose(1, 2))


def with_gaps(segments: Sequence[Segment], rows: Sequence[Tensor], size: int) -> Tensor:
    """The rows of all segments at their positions, with zeros in between and at the end."""
    found, end = [], 0
    for segment, own in zip(segments, rows, strict=True):
        if segment.atoms.start > end:
            found.append(own.new_zeros(segment.atoms.start - end, *own.shape[1:]))
        found.append(own)
        end = segment.atoms.stop
    if size > end:
        found.append(found[-1].new_zeros(size - end, *found[-1].shape[1:]))
    return torch.cat(found)
