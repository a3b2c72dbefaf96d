"""Loader that prefetches the batches of the next steps in threads while the current step runs."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from ramify.batches.batch import Batch, BatchPart
from ramify.batches.conditions import condition_values
from ramify.batches.edge_cache import BYTES_PER_EDGE, EdgeCache
from ramify.batches.transfer import transfer_to
from ramify.neighbors.edges import find_edges
from ramify.packing import pieces_of
from ramify.recipe import ModelOptions
from ramify.store.prefetch import Prefetcher
from ramify.store.store import LabelCounts, Store

TYPICAL_NEIGHBORS = 50
"""Neighbours per atom in estimates of the size of an edge cache if `max_neighbors` is null."""


class SplitReader:
    """Reads one split of one dataset as parts of batches: structures from the store, edges cached or computed.

    Args:
        dataset: name of the dataset.
        store: store of the dataset.
        split: `train`, `val` or `test`.
        branch: branch of the dataset.
        cutoff: Å.
        max_neighbors: maximum number of neighbours per atom.
        edge_cache: maximum GB of a cache of edges; if it would be larger, edges are computed for every batch.
        model: options of the model, for its conditions; None: no conditions.
        finds_edges: whether parts have edges; otherwise they are found later (`ramify.batches.edge_search`).
        progress: called with the number of structures whose edges were computed.
    """

    def __init__(
        self,
        dataset: str,
        store: Store,
        split: str,
        branch: str,
        *,
        cutoff: float,
        max_neighbors: int | None,
        edge_cache: float,
        model: ModelOptions | None = None,
        finds_edges: bool = True,
        progress: Callable[[int], None] = lambda structures: None,
    ) -> None:
        self._model, self._finds_edges = model, finds_edges
        self.dataset, self.branch = dataset, branch
        self.store, self.rows = store, store.range(split)
        self._cutoff, self._max_neighbors = cutoff, max_neighbors
        atoms = int(store.n_atoms[self.rows.start : self.rows.stop].sum())
        estimate = atoms * ((max_neighbors or TYPICAL_NEIGHBORS) + 1) * BYTES_PER_EDGE
        self._table = None
        if finds_edges and len(self.rows) and estimate <= edge_cache * 1e9:
            self._table = EdgeCache(store, self.rows, cutoff, max_neighbors, progress)

    def __len__(self) -> int:
        return len(self.rows)

    def edge_counts(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """(T,) number of edges of the structures at `indices`, the same on every process: from the cache, or without
        one estimated as `max_neighbors` (or `TYPICAL_NEIGHBORS`) per atom."""
        rows = self.rows.start + indices
        if self._table is not None:
            return self._table.edge_counts(rows)
        return self.atom_counts(indices) * (self._max_neighbors or TYPICAL_NEIGHBORS)

    def atom_counts(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """(T,) number of atoms of the structures at `indices`."""
        return self.store.n_atoms[self.rows.start + indices].astype(np.int64)

    def label_counts(self, indices: NDArray[np.int64], *, stress: bool) -> LabelCounts:
        """Counts the labels of the structures at `indices`; those of stress only if requested."""
        return self.store.label_counts(self.rows.start + indices, stress=stress)

    def part(self, indices: NDArray[np.int64]) -> BatchPart:
        """Reads the structures at `indices` of the split, with their edges if the reader finds them."""
        rows = self.rows.start + indices
        structures = self.store.take(rows)
        edges = None
        if self._table is not None:
            edges = self._table.take(rows)
        elif self._finds_edges:
            edges = find_edges(structures, self._cutoff, self._max_neighbors)
        conditions = None if self._model is None else condition_values(self._model, structures, self.dataset)
        return BatchPart(self.dataset, self.branch, structures, edges, self.store.references, conditions)

    def culprit(self, indices: NDArray[np.int64]) -> str:
        """Finds the first structure at `indices` that cannot be read, and returns its place in the original files;
        empty if all can be read alone."""
        for index in indices.tolist():
            try:
                self.part(np.array([index]))
            except Exception:
                try:
                    return f"is row {index}, {self.store.take([self.rows.start + index]).name(0)}"
                except Exception:  # its origin cannot be read either
                    return f"is row {index}"
        return ""

    def batches(
        self, atoms_at_once: int, dtype: torch.dtype, *, first: int = 0, step: int = 1
    ) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Yields the whole split in order, in batches of about `atoms_at_once` atoms: (indices, batch).

        With `first` and `step`, yields only every `step`-th of these batches, beginning with number `first`.
        """
        n_atoms = self.store.n_atoms[self.rows.start : self.rows.stop]
        for piece in islice(pieces_of(n_atoms, atoms_at_once), first, None, step):
            indices = np.arange(piece.start, piece.stop)
            yield indices, Batch.make([self.part(indices)], dtype)


@dataclass(frozen=True, slots=True)
class StepAssignment:
    """Work of one process in one step.

    Attributes:
        step: number of the step, from 0.
        micro_batches: for each micro-batch, the rows of the training split of each dataset; empty if the process has no
            structures in this step.
        labels: for each dataset of the branches on this process, the number of labels of its structures in the step,
            over all processes; datasets without structures in the step are absent.
    """

    step: int
    micro_batches: tuple[Mapping[str, NDArray[np.int64]], ...]
    labels: Mapping[str, LabelCounts]


@dataclass(frozen=True, slots=True)
class StepBatches:
    """The batches of a `StepAssignment`, one per micro-batch."""

    assignment: StepAssignment
    batches: tuple[Batch, ...]


class Loader(Prefetcher[StepAssignment, StepBatches]):
    """Iterates over the batches of consecutive steps; use as a context manager.

    Threads prefetch batches with bounded memory; the batches do not depend on the number of threads. An error is raised
    by the `next()` of the step in which it occurs, with the step, the dataset and the structure.

    Args:
        readers: readers of the training splits, whose order is that of the parts of a micro-batch: datasets of one
            branch must be consecutive.
        assignments: work of each step.
        dtype: floating-point type of the batches.
        ahead: maximum number of steps that are ready or in progress.
        workers: number of threads.
        device: device to which batches are transferred while earlier steps run.
        pad: (batch, number of the step) -> padded batch; None: no padding.
        search: finds the edges of batches on the device, if readers do not.
    """

    def __init__(
        self,
        readers: Mapping[str, SplitReader],
        assignments: Iterator[StepAssignment],
        dtype: torch.dtype,
        ahead: int = 2,
        *,
        workers: int = 1,
        device: torch.device | None = None,
        pad: Callable[[Batch, int], Batch] | None = None,
        search: Callable[[Batch], Batch] = lambda batch: batch,
    ) -> None:
        self._readers, self._dtype, self._sending = readers, dtype, transfer_to(device)
        self._pad, self._search = pad, search
        super().__init__(assignments, self._work_of, workers=workers, ahead=ahead)

    def __next__(self) -> StepBatches:
        work = super().__next__()
        return replace(work, batches=tuple(self._sending.receive(batch) for batch in work.batches))

    def _work_of(self, assignment: StepAssignment) -> StepBatches:
        batches = (self._sent(assignment.step, micro_batch) for micro_batch in assignment.micro_batches)
        return StepBatches(assignment, tuple(batches))

    def _sent(self, step: int, micro_batch: Mapping[str, NDArray[np.int64]]) -> Batch:
        """A batch on its way to the device; without edges, it is completed there."""
        batch = self._batch(step, micro_batch)
        if batch.cell is None:
            return self._sending.send(self._padded(batch, step), lambda there: there)
        try:
            return self._sending.send(batch, lambda there: self._padded(self._search(there), step))
        except Exception as error:
            error.add_note(f"while the edges of the batch of step {step} were found on the device")
            raise

    def _padded(self, batch: Batch, step: int) -> Batch:
        return batch if self._pad is None else self._pad(batch, step)

    def _batch(self, step: int, micro_batch: Mapping[str, NDArray[np.int64]]) -> Batch:
        parts = []
        for name, reader in self._readers.items():
            if name in micro_batch:
                try:
                    parts.append(reader.part(micro_batch[name]))
                except Exception as error:
                    error.add_note(f"in dataset '{name}', training rows {micro_batch[name].tolist()}")
                    if culprit := reader.culprit(micro_batch[name]):
                        error.add_note(f"which {culprit}")
                    error.add_note(f"while the batch of step {step} was made")
                    raise
        return Batch.make(parts, self._dtype)
