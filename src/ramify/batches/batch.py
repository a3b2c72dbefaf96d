"""`Batch`: the structures of a step as tensors, in contiguous segments, one per branch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ramify.labels import BUILT_IN, further
from ramify.neighbors.distances import complete_cells
from ramify.neighbors.edges import NO_EDGES, CutoffPairs, Edges
from ramify.neighbors.wrapping import displacements
from ramify.references import reference_energy
from ramify.structures import Structures


@dataclass(frozen=True, slots=True)
class Segment:
    """A contiguous part of a batch: the structures of one branch or of one dataset."""

    name: str
    structures: slice
    atoms: slice


@dataclass(frozen=True, slots=True)
class BatchPart:
    """The structures of one dataset in a batch.

    Attributes:
        dataset: name of the dataset.
        branch: name of its branch.
        structures: the structures.
        edges: their edges, with atom indices within `structures`; None if they are found later, on the device.
        references: (119,) eV per element, by atomic number.
        conditions: (S, C) values of the conditions of the model (`ramify.batches.conditions`); None without conditions.
    """

    dataset: str
    branch: str
    structures: Structures
    edges: Edges | None
    references: np.ndarray
    conditions: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """S structures, N atoms, E edges. Labels that are absent are NaN.

    Attributes:
        numbers: (N,) int64.
        positions: (N, 3) Å.
        structure: (N,) int64, index of the structure of each atom.
        n_atoms: (S,) atoms of each structure, as floats of the batch's precision.
        receiver, sender: (E,) int64, sorted by receiver.
        shift: (E, 3) Å, displacement of the sender to its periodic image.
        slots: (n,) int64, 0, 1, ... n - 1, where n is the maximum number of neighbours of an atom in the batch: tables
            of neighbours (N, n) can then be built without reading a count from the device.
        atom_cutoff: (N,) Å, adaptive cutoff of each atom.
        cutoff_receiver, cutoff_sender: (H,) int64, atoms of the cutoff pairs (see `ramify.neighbors.edges`).
        cutoff_shift: (H, 3) Å, displacement of the sender to its periodic image.
        cutoff_gain: (H,), derivatives of adaptive cutoffs with respect to the distances of the cutoff pairs.
        volume: (S,) Å³, 0 without a cell.
        energy: (S,) eV per atom, after subtracting reference energies.
        forces: (N, 3) eV/Å.
        stress: (S, 3, 3) eV/Å³.
        segments: one per branch with structures in the batch, in order.
        datasets: one per dataset with structures in the batch, in order.
        further: further labels by name, (S,) in their unit of errors.
        conditions: (S, C) values of the conditions of the model; None without conditions.
        cell, periodic: (S, 3, 3) float64, Å, completed by vectors along axes without periodicity, and (S, 3) bool, axes
            with periodicity: only in a batch without edges, from which `ramify.batches.edge_search` finds them.
    """

    numbers: Tensor
    positions: Tensor
    structure: Tensor
    n_atoms: Tensor
    receiver: Tensor
    sender: Tensor
    shift: Tensor
    slots: Tensor
    atom_cutoff: Tensor
    cutoff_receiver: Tensor
    cutoff_sender: Tensor
    cutoff_shift: Tensor
    cutoff_gain: Tensor
    volume: Tensor
    energy: Tensor
    forces: Tensor
    stress: Tensor
    segments: tuple[Segment, ...]
    datasets: tuple[Segment, ...]
    further: Mapping[str, Tensor] = field(default_factory=dict)
    conditions: Tensor | None = None
    cell: Tensor | None = None
    periodic: Tensor | None = None

    @classmethod
    def make(cls, parts: Sequence[BatchPart], dtype: torch.dtype = torch.float32) -> Self:
        """Joins the parts; parts of one branch must be consecutive, and all or none have edges. Reference energies are
        subtracted in float64, and structures far from the origin are moved close to it (`ramify.neighbors.wrapping`)
        before positions are cast."""
        n_atoms, cell = _joined(parts, "n_atoms"), _joined(parts, "cell").astype(np.float64)
        structure = np.repeat(np.arange(len(n_atoms)), n_atoms)
        kind = np.float64 if dtype == torch.float64 else np.float32
        positions, moved = _near_origin(parts)
        edges = [NO_EDGES if p.edges is None else p.edges for p in parts]
        receiver, sender, shift = _join(parts, edges, structure, cell, moved, kind)
        cutoff_pairs = [e.cutoff_pairs for e in edges]
        cutoff_receiver, cutoff_sender, cutoff_shift = _join(parts, cutoff_pairs, structure, cell, moved, kind)
        energy = [
            (p.structures.energy - reference_energy(p.structures, p.references)) / p.structures.n_atoms for p in parts
        ]

        def real(array: np.ndarray) -> Tensor:
            # converted by NumPy: PyTorch would start a thread pool for each thread that makes batches
            return torch.from_numpy(np.ascontiguousarray(array, kind))

        return cls(
            numbers=torch.from_numpy(_joined(parts, "numbers").astype(np.int64)),
            positions=real(positions),
            structure=torch.from_numpy(structure),
            n_atoms=real(n_atoms),
            receiver=torch.from_numpy(receiver),
            sender=torch.from_numpy(sender),
            shift=torch.from_numpy(shift),
            slots=torch.from_numpy(np.arange(np.bincount(receiver, minlength=1).max())),
            atom_cutoff=real(_one([e.atom_cutoff for e in edges])),
            cutoff_receiver=torch.from_numpy(cutoff_receiver),
            cutoff_sender=torch.from_numpy(cutoff_sender),
            cutoff_shift=torch.from_numpy(cutoff_shift),
            cutoff_gain=real(_one([pairs.gain for pairs in cutoff_pairs])),
            volume=real(np.abs(np.linalg.det(cell))),
            energy=real(_one(energy)),
            forces=real(_joined(parts, "forces")),
            stress=real(_joined(parts, "stress")),
            segments=_segments([p.branch for p in parts], parts),
            datasets=_segments([p.dataset for p in parts], parts),
            further={
                name: real(_one([p.structures.compared(name) for p in parts]))
                for name in further()
                if any(name in p.structures.labels for p in parts)
            },
            conditions=real(_one(conditions)) if (conditions := _conditions(parts)) else None,
            **({} if all(p.edges is not None for p in parts) else _lattice(parts, cell)),
        )

    def labels(self) -> dict[str, Tensor]:
        """All labels by name, in their units of errors."""
        return {name: getattr(self, name) for name in BUILT_IN} | dict(self.further)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, except those of further labels."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Copies the batch to another device; with `non_blocking`, returns before the copy is complete."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pinned(self) -> Self:
        """Copies the batch to page-locked memory, from which a device can copy asynchronously."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **changed, further={name: change(tensor) for name, tensor in self.further.items()})


def _lattice(parts: Sequence[BatchPart], cell: np.ndarray) -> dict[str, Tensor]:
    """`cell` and `periodic` of a batch without edges."""
    periodic = _joined(parts, "pbc")
    complete = complete_cells(cell, periodic, np.ones(len(cell)))
    return {"cell": torch.from_numpy(complete), "periodic": torch.from_numpy(periodic)}


def _joined(parts: Sequence[BatchPart], column: str) -> np.ndarray:
    """Joins a column of all structures without joining their names, which may be millions."""
    return _one([getattr(p.structures, column) for p in parts])


def _conditions(parts: Sequence[BatchPart]) -> list[np.ndarray]:
    """Values of the conditions of all parts; none for a model without conditions."""
    return [part.conditions for part in parts if part.conditions is not None]


def _one(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Joins arrays; a single array is not copied."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _near_origin(parts: Sequence[BatchPart]) -> tuple[np.ndarray, np.ndarray | None]:
    """Positions (N, 3) close to the origin, and the displacements subtracted from them (None for none), in Å."""
    positions = _joined(parts, "positions")
    found = [displacements(p.structures) for p in parts]
    if all(some is None for some in found):
        return positions, None
    none = [np.zeros((len(p.structures.numbers), 3)) for p in parts]
    moved = _one([zero if some is None else some for some, zero in zip(found, none, strict=True)])
    return positions.astype(np.float64) - moved, moved


def _join(
    parts: Sequence[BatchPart],
    pairs: Sequence[Edges | CutoffPairs],
    structure: np.ndarray,
    cell: np.ndarray,
    moved: np.ndarray | None,
    kind: type[np.floating],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Receivers and senders as indices within the batch, and lattice shifts as vectors in Å."""
    atoms = np.array([len(p.structures.numbers) for p in parts])
    first = np.cumsum(atoms) - atoms
    receiver = _one([p.receiver + a if a else p.receiver for p, a in zip(pairs, first.tolist(), strict=True)])
    sender = _one([p.sender + a if a else p.sender for p, a in zip(pairs, first.tolist(), strict=True)])
    steps = _one([p.shift for p in pairs])
    shift = np.zeros((len(steps), 3), kind if moved is None else np.float64)
    if cell.any() and steps.any():
        of_pair = structure[receiver]
        step = [steps[:, k].astype(np.float64) for k in range(3)]
        for c in range(3):
            along = step[0] * np.take(cell[:, 0, c], of_pair)
            for k in (1, 2):
                along += step[k] * np.take(cell[:, k, c], of_pair)
            shift[:, c] = along
    if moved is not None:
        shift = (shift + (moved[sender] - moved[receiver])).astype(kind)
    return receiver, sender, shift


def _segments(names: Sequence[str], parts: Sequence[BatchPart]) -> tuple[Segment, ...]:
    """Segments of each name; consecutive parts of one name form one segment."""
    segments: dict[str, Segment] = {}
    structure = atom = 0
    previous = None
    for name, part in zip(names, parts, strict=True):
        if name in segments and name != previous:
            raise ValueError(f"the parts of '{name}' are not consecutive")
        next_structure, next_atom = structure + len(part.structures), atom + len(part.structures.numbers)
        begun = segments.get(name)
        segments[name] = Segment(
            name,
            slice(begun.structures.start if begun else structure, next_structure),
            slice(begun.atoms.start if begun else atom, next_atom),
        )
        structure, atom, previous = next_structure, next_atom, name
    return tuple(segments.values())
