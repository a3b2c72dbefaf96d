"""Prediction by one branch: screening, batching, reference energies added in float64."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ramify.batches.batch import Batch, BatchPart
from ramify.batches.conditions import condition_values
from ramify.batches.transfer import host_array
from ramify.errors import RamifyError
from ramify.inference.batching import MemoryBudget, edges_of_span, plan
from ramify.inference.branches import BranchInfo, DatasetInfo
from ramify.inference.memory import memory_needed, readable, search_memory
from ramify.inference.passes.inputs import EdgeSlopes, edge_vectors, pass_inputs, with_edge_vectors
from ramify.inference.passes.plain import Pass, PassOutputs
from ramify.inference.predictions import Floats, Predictions
from ramify.inference.screen import (
    TOO_LARGE,
    Refused,
    closest_pairs,
    doubts,
    screen,
    screen_distances,
    screen_predictions,
)
from ramify.model.multibranch import MultiBranch
from ramify.model.physics.dispersion import Dispersion
from ramify.neighbors.edges import Edges, edges_among, find_pairs, search_radius
from ramify.packing import pieces_of
from ramify.recipe import ModelOptions
from ramify.references import reference_energy
from ramify.structures import STATES, Structures, atom_rows
from ramify.uncertainty.error_bars import BranchBars

Rows = NDArray[np.int64]

SEARCHED_ATOMS = 20_000
"""Number of atoms per neighbour search: enough for vector operations to be efficient, within the memory."""


@dataclass(frozen=True, slots=True)
class RawPredictions:
    """Raw predictions of a branch for S structures with N atoms.

    Attributes:
        energy: (S,) eV, total energies (reference energies added).
        forces: (N, 3) eV/Å; NaN without a force head.
        stress: (S, 3, 3) eV/Å³; NaN without a cell or with direct forces.
        labels: further labels by name, (S,) in their units of errors.
        energy_std: (S,) eV; None without error bars.
        forces_std: (N, 3) eV/Å; None unless requested.
    """

    energy: Floats
    forces: Floats
    stress: Floats
    labels: Mapping[str, Floats]
    energy_std: Floats | None = None
    forces_std: Floats | None = None


@dataclass(frozen=True)
class Predictor:
    """Predicts with one branch of a network.

    Args:
        network: the network with its weights.
        options: options that it was built from.
        branch: the branch.
        dataset: the dataset whose energy scale is used.
        run: a pass of the branch, plain or compiled.
        charge: e, of structures that state none; None: such structures are refused if the model takes the charge.
        spin: multiplicity of structures that state none, likewise.
        bars: error bars of the branch; None without.
        forces_std: whether error bars of forces are computed; with conservative forces, they take many times as long as
            the forces.
        members: predictors of a committee, the first of which has all other arguments; empty without. Predictions are
            then the means of theirs, and standard deviations those of theirs (n - 1 in the denominator).
        dispersion: correction added to energies, forces and stress; None without.
    """

    network: MultiBranch
    options: ModelOptions
    branch: BranchInfo
    dataset: DatasetInfo
    run: Pass
    charge: int | None = None
    spin: int | None = None
    bars: BranchBars | None = None
    forces_std: bool = False
    members: tuple["Predictor", ...] = ()
    dispersion: Dispersion | None = None

    @property
    def has_error_bars(self) -> bool:
        """Whether energies have error bars: calibrated ones, or the spread of a committee."""
        return self.bars is not None or bool(self.members)

    @cached_property
    def references(self) -> Floats:
        """(119,) eV, reference energies by atomic number."""
        return self.dataset.reference_table()

    def require_forces(self, use: str) -> None:
        """Refuses a branch without forces, which cannot be used to `use`.

        Raises:
            RamifyError: naming the branch.
        """
        if self.branch.forces is None:
            raise RamifyError(
                f"branch '{self.branch.name}' predicts no forces, so it cannot {use}",
                fix="name a branch whose datasets have forces",
            )

    def stated(self, structures: Structures) -> Structures:
        """The structures with `charge` and `spin` where they state none."""
        given = {name: value for name in STATES if (value := getattr(self, name)) is not None}
        filled: dict[str, Any] = {
            name: np.where(np.isnan(getattr(structures, name)), value, getattr(structures, name))
            for name, value in given.items()
        }
        return replace(structures, **filled) if filled else structures

    def predict_edges(self, structures: Structures, edges: Edges) -> "RawPredictions":
        """Predictions for structures that passed the screening."""
        found = self._of_branch(structures, edges)
        if self.dispersion is None:
            return found
        energy, forces, stress = self.dispersion.energies(structures)
        return replace(found, energy=found.energy + energy, forces=found.forces + forces, stress=found.stress + stress)

    def _of_branch(self, structures: Structures, edges: Edges) -> "RawPredictions":
        """As `predict_edges`, without dispersion."""
        if self.members:
            return _mean_of([member.predict_edges(structures, edges) for member in self.members], self.forces_std)
        scale = self.network.branch(self.branch.name).energy_scale
        structure, count = structures.structure_of_atom, len(structures)
        vector = edge_vectors(structures, edges, structure)
        conditions = condition_values(self.options, structures, self.dataset.name)
        inputs = pass_inputs(structures, edges, structure, vector, conditions, scale.dtype, scale.device)
        found = self.run(inputs)
        energy = np.bincount(structure, host_array(found.energy), count) + reference_energy(structures, self.references)
        forces = np.full((len(structure), 3), np.nan) if found.forces is None else host_array(found.forces)
        stress = np.full((count, 3, 3), np.nan)
        if found.slope is not None and found.cutoff_slope is not None:
            rim = edge_vectors(structures, edges.cutoff_pairs, structure)
            slopes = EdgeSlopes.of(edges, vector, host_array(found.slope), host_array(found.cutoff_slope), rim)
            forces = slopes.forces(len(structure))
            periodic = structures.pbc.any(axis=1)  # a box without periodic axes has no stress
            if periodic.any():
                volume = np.abs(np.linalg.det(structures.cell[periodic].astype(np.float64)))
                known = np.where(volume > 0, volume, np.nan)[:, None, None]  # nor has an incomplete cell
                stress[periodic] = slopes.virial(structure, count)[periodic] / known
        labels = {name: host_array(values) for name, values in found.labels.items()}
        stds = self._standard_deviations(structures, edges, conditions, found)
        return RawPredictions(energy, forces, stress, labels, *stds)

    def _standard_deviations(
        self, structures: Structures, edges: Edges, conditions: Floats | None, found: PassOutputs
    ) -> tuple[Floats | None, Floats | None]:
        """Of energies (S,), eV, and forces (N, 3), eV/Å; None where there are none."""
        if self.bars is None:
            return None, None
        part = BatchPart(self.dataset.name, self.branch.name, structures, edges, self.references, conditions)
        names, features = (self.branch.name, self.dataset.name), (found.scalars, found.vectors)
        with torch.inference_mode(False), torch.no_grad():
            dtype, device = found.scalars.dtype, found.scalars.device
            batch = with_edge_vectors(Batch.make([part], dtype), structures, edges).to(device)
            return self.bars.standard_deviations(
                self.network, names, structures, batch, features, forces=self.forces_std
            )

    def predict(
        self, structures: Structures, budget: MemoryBudget, progress: Callable[[int], None] = lambda structures: None
    ) -> Predictions:
        """Predicts all valid structures; others are listed in `refused` with the reason and raise no exception.

        Args:
            structures: any number.
            budget: limits of one batch.
            progress: called with the number of structures predicted since the last call.
        """
        structures = self.stated(structures)
        labels = self.network.branch(self.branch.name).labels
        bars = self.has_error_bars, self.has_error_bars and self.forces_std
        work = _Work(structures, with_forces=self.branch.forces is not None, labels=labels, bars=bars)
        work.refused |= screen(structures, self.branch, self.dataset)
        work.refused |= self._too_large_to_search(structures, budget)
        progress(len(work.refused))
        for rows in _searches(structures.n_atoms, work.refused):
            self._predict_rows(work, rows, budget)
            progress(len(rows))
        return work.predictions()

    def _predict_rows(self, work: "_Work", rows: Rows, budget: MemoryBudget) -> None:
        """Finds the edges of `rows`, refuses structures with invalid distances, and predicts the others in batches."""
        encoder = self.options.encoder
        some = work.structures.take(rows)
        pairs = find_pairs(some, search_radius(encoder.cutoff, encoder.max_neighbors))
        closest = closest_pairs(some, pairs)
        if coincident := screen_distances(closest):
            work.refused |= {int(rows[k]): why for k, why in coincident.items()}
            rest = np.delete(rows, list(coincident))
            if len(rest):
                self._predict_rows(work, rest, budget)
            return
        work.warnings |= {int(rows[k]): why for k, why in doubts(some, closest, self.branch, self.dataset).items()}
        edges = edges_among(pairs, len(some.numbers), encoder.cutoff, encoder.max_neighbors)
        n_edges = np.diff(np.searchsorted(edges.receiver, some.offsets))
        neighbors = np.bincount(edges.receiver, minlength=len(some.numbers))
        offsets = some.offsets
        for span in plan(some.n_atoms, n_edges, budget):
            first, last = int(offsets[span.start]), int(offsets[span.stop])
            most = int(neighbors[first:last].max())
            needed = self.memory_needed(last - first, int(n_edges[span].sum()), most)
            if span.stop == span.start + 1 and needed > budget.memory:
                work.refused[int(rows[span.start])] = _too_large(last - first, n_edges[span.start], needed, budget)
                continue
            try:
                found = self.predict_edges(some.span(span.start, span.stop), edges_of_span(edges, first, last))
            except torch.OutOfMemoryError:  # the estimate was too low, or another program took the free memory
                if span.stop > span.start + 1:
                    self._predict_rows(work, rows[span], replace(budget, edges=max(1, budget.edges // 4)))
                else:
                    work.refused[int(rows[span.start])] = _too_large(last - first, n_edges[span.start], needed, budget)
                continue
            work.keep(rows[span], found)

    def memory_needed(self, atoms: int, edges: int, neighbors: int | None = None) -> float:
        """Bytes for one batch in the precision of the network; see `ramify.inference.memory.memory_needed`."""
        double = self.network.branch(self.branch.name).energy_scale.dtype == torch.float64
        return (2 if double else 1) * memory_needed(self.options, self.branch.forces, atoms, edges, neighbors)

    def _too_large_to_search(self, structures: Structures, budget: MemoryBudget) -> Refused:
        """Structures that are too large for the neighbour search."""
        refused: Refused = {}
        for index in np.flatnonzero(structures.n_atoms > SEARCHED_ATOMS).tolist():
            atoms = int(structures.n_atoms[index])
            needed = max(search_memory(atoms), self.memory_needed(atoms, 0))
            if needed > budget.memory:
                refused[index] = _too_large(atoms, None, needed, budget)
        return refused


def _mean_of(found: Sequence[RawPredictions], forces_std: bool) -> RawPredictions:
    """The predictions of a committee."""
    energy, forces = np.stack([one.energy for one in found]), np.stack([one.forces for one in found])
    stress: Floats = np.mean([one.stress for one in found], axis=0)
    labels = {name: np.mean([one.labels[name] for one in found], axis=0) for name in found[0].labels}
    spread = forces.std(axis=0, ddof=1) if forces_std else None
    return RawPredictions(energy.mean(0), forces.mean(0), stress, labels, energy.std(axis=0, ddof=1), spread)


class _Work:
    """Predictions in progress."""

    def __init__(
        self, structures: Structures, *, with_forces: bool, labels: Iterable[str], bars: tuple[bool, bool]
    ) -> None:
        self.structures = structures
        self._with_forces = with_forces
        self.refused: Refused = {}
        self.warnings: dict[int, str] = {}
        self._offsets = structures.offsets
        self._energy = np.full(len(structures), np.nan)
        self._forces = np.full((len(structures.numbers), 3), np.nan)
        self._stress = np.full((len(structures), 3, 3), np.nan)
        self._labels: dict[str, Floats] = {name: np.full(len(structures), np.nan) for name in labels}
        self._energy_std = np.full(len(structures), np.nan) if bars[0] else None
        self._forces_std = np.full((len(structures.numbers), 3), np.nan) if bars[1] else None

    def keep(self, rows: Rows, found: "RawPredictions") -> None:
        """Stores the predictions for `rows`; refuses structures whose predictions overflow."""
        counts = self.structures.n_atoms[rows]
        self._energy[rows], self._stress[rows] = found.energy, found.stress
        atoms = atom_rows(self._offsets[rows], counts)
        self._forces[atoms] = found.forces
        if self._energy_std is not None:
            self._energy_std[rows] = found.energy_std
        if self._forces_std is not None:
            self._forces_std[atoms] = found.forces_std
        numbers = found.energy.copy()
        for name, values in found.labels.items():
            self._labels[name][rows] = values
            numbers += values
        for k, why in screen_predictions(numbers, found.forces if self._with_forces else None, counts).items():
            self.refused[int(rows[k])] = why

    def predictions(self) -> Predictions:
        """The finished predictions."""
        for index in self.refused:
            self._energy[index] = self._stress[index] = np.nan
            for values in self._labels.values():
                values[index] = np.nan
            atoms = slice(self._offsets[index], self._offsets[index + 1])
            self._forces[atoms] = np.nan
            if self._energy_std is not None:
                self._energy_std[index] = np.nan
            if self._forces_std is not None:
                self._forces_std[atoms] = np.nan
            self.warnings.pop(index, None)
        forces = self._forces if self._with_forces else None
        order = dict(sorted(self.refused.items()))
        n_atoms, labels = self.structures.n_atoms, self._labels
        bars = self._energy_std, self._forces_std
        return Predictions(n_atoms, self._energy, forces, self._stress, order, self.warnings, labels, *bars)


def _searches(n_atoms: Rows, refused: Refused) -> Iterator[Rows]:
    """The structures that were not refused, in chunks of about `SEARCHED_ATOMS` atoms."""
    rows = np.delete(np.arange(len(n_atoms)), list(refused))
    return (rows[part] for part in pieces_of(n_atoms[rows], SEARCHED_ATOMS))


def _too_large(atoms: int, edges: int | None, needed: float, budget: MemoryBudget) -> tuple[str, str]:
    size = f"{atoms:,} atoms" + ("" if edges is None else f" with {edges:,} edges")
    return TOO_LARGE, f"{size} take about {readable(needed)} of memory, {readable(budget.memory)} are free"
