"""Errors of a model with its error bars, on evenly spaced batches of a split."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ramify.batches.batch import Batch
from ramify.batches.loader import SplitReader
from ramify.evaluate.predict_split import ATOMS_AT_ONCE, read_by
from ramify.model.graph import build_graph
from ramify.model.multibranch import MultiBranch, structure_energies
from ramify.uncertainty.error_bars import BranchBars, Floats, element_sets

MEASURED_STRUCTURES = 5_000
"""Validation or test structures of each dataset whose energies are compared: every k-th batch of larger splits."""
MEASURED_ATOMS = 3_000
"""Approximate number of atoms of each dataset whose forces are compared, likewise."""

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Observed:
    """Observed errors of a dataset with the standard deviations for α = 1.

    Attributes:
        energy_error, energy_std: (S,) eV/atom.
        energy_sets: (S,) elements of each structure.
        forces_error, forces_std: (A, 3) eV/Å of the atoms whose force is labelled.
        force_sets: (A,) elements of the structure of each atom.
        force_structures: by set of elements, the number of structures with labelled forces.
    """

    energy_error: Floats
    energy_std: Floats
    energy_sets: NDArray[np.str_]
    forces_error: Floats
    forces_std: Floats
    force_sets: NDArray[np.str_]
    force_structures: Counter[str]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch of a split with the encoder's features; no gradients."""

    batch: Batch
    scalars: Tensor
    vectors: Tensor | None
    energy: Tensor


def encoded(network: MultiBranch, branch: str, reader: SplitReader, most: int, progress: Progress) -> Iterator[Encoded]:
    """Evenly spaced batches of a split, of about `most` structures in total."""
    every = max(1, math.ceil(len(reader) / most))
    like = next(network.parameters())
    for indices, batch in reader.batches(ATOMS_AT_ONCE, like.dtype, step=every):
        with torch.no_grad():
            own = read_by(batch, branch).to(like.device)
            graph = build_graph(own, network.cutoff, own.positions)
            scalars, vectors = network.encoder(graph)
            total = structure_energies(network.atom_energies(network.heads(own), scalars, graph), own)
            yield Encoded(own, scalars, vectors, total / own.n_atoms)
        progress(len(indices))


def observe(network: MultiBranch, branch: str, bars: BranchBars, reader: SplitReader, progress: Progress) -> Observed:
    """Errors and standard deviations on a split."""
    parts = []
    for found in encoded(network, branch, reader, MEASURED_STRUCTURES, progress):
        error = (found.energy - found.batch.energy).double().cpu().numpy()
        std, known = bars.raw_energy_std(network, branch, found.batch, found.scalars), ~np.isnan(error)
        sets = np.array(element_sets(*_composition(found.batch)))[known]
        parts.append(Observed(error[known], std[known], sets, *_NO_FORCES))
    if network.branch(branch).forces is not None:
        atoms = max(1, int(reader.atom_counts(np.arange(len(reader))).mean()))
        for found in encoded(network, branch, reader, max(1, MEASURED_ATOMS // atoms), progress):
            parts.append(_observed_forces(network, branch, bars, found))
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.force_structures)
    names = [column.name for column in fields(Observed) if column.name != "force_structures"]
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Observed(**joined, force_structures=counts)


def _observed_forces(network: MultiBranch, branch: str, bars: BranchBars, found: Encoded) -> Observed:
    """Errors and standard deviations of the forces of a batch."""
    batch = found.batch
    with torch.no_grad():
        error = (network(batch).forces - batch.forces).double().cpu().numpy()
    std = bars.raw_forces_std(network, branch, batch, found.scalars, found.vectors)
    sets = np.array(element_sets(*_composition(batch)))
    known, of_atom = ~np.isnan(error).any(1), batch.structure.cpu().numpy()
    counts = Counter(sets[np.unique(of_atom[known])].tolist())
    return Observed(*_NO_ENERGIES, error[known], std[known], sets[of_atom][known], counts)


_NO_ENERGIES = np.zeros(0), np.zeros(0), np.zeros(0, np.str_)
_NO_FORCES = np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0, np.str_), Counter[str]()


def _composition(batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Atomic numbers (N,) and sizes (S,)."""
    return batch.numbers.cpu().numpy(), batch.n_atoms.long().cpu().numpy()
