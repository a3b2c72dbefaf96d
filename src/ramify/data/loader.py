"""Batches for the steps to come, assembled by a thread while the current step runs."""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from ramify.data.batch import Batch, Part
from ramify.data.edge_table import BYTES_PER_EDGE, EdgeTable
from ramify.data.neighbors import find_edges
from ramify.data.store import LabelCounts, Store

TYPICAL_NEIGHBORS = 50
"""Neighbours per atom assumed when the size of an edge table is estimated and `max_neighbors` sets no limit."""


class SplitReader:
    """One split of one dataset as parts of batches: structures from the store, edges from a table or on the fly.

    Args:
        dataset: its name.
        store: of the dataset.
        split: `train`, `val` or `test`.
        branch: that reads the dataset.
        cutoff: Å.
        max_neighbors: per atom.
        edge_cache: GB that a table of edges may take; beyond that edges are found for every batch.
        progress: called with the number of structures whose edges have been found.
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
        progress: Callable[[int], None] = lambda structures: None,
    ) -> None:
        self.dataset, self.branch = dataset, branch
        self.store, self.rows = store, store.range(split)
        self._cutoff, self._max_neighbors = cutoff, max_neighbors
        atoms = int(store.n_atoms[self.rows.start : self.rows.stop].sum())
        estimate = atoms * ((max_neighbors or TYPICAL_NEIGHBORS) + 1) * BYTES_PER_EDGE
        self._table = None
        if len(self.rows) and estimate <= edge_cache * 1e9:
            self._table = EdgeTable(store, self.rows, cutoff, max_neighbors, progress)

    def __len__(self) -> int:
        return len(self.rows)

    def edge_counts(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """(T,) edges of the structures at `indices`, the same on every process: from the table, or where there is none
        estimated as `max_neighbors` (else `TYPICAL_NEIGHBORS`) for each atom."""
        rows = self.rows.start + indices
        if self._table is not None:
            return self._table.edge_counts(rows)
        return self.store.n_atoms[rows] * (self._max_neighbors or TYPICAL_NEIGHBORS)

    def atom_counts(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """(T,) atoms of the structures at `indices`."""
        return self.store.n_atoms[self.rows.start + indices]

    def label_counts(self, indices: NDArray[np.int64], *, stress: bool) -> LabelCounts:
        """How many labels the structures at `indices` have; those of stress are only looked for when asked for."""
        return self.store.label_counts(self.rows.start + indices, stress=stress)

    def part(self, indices: NDArray[np.int64]) -> Part:
        """The structures at `indices` of the split, with their edges."""
        rows = self.rows.start + indices
        structures = self.store.take(rows)
        if self._table is not None:
            edges = self._table.take(rows)
        else:
            edges = find_edges(structures, self._cutoff, self._max_neighbors)
        return Part(self.dataset, self.branch, structures, edges, self.store.references)

    def batches(
        self, atoms_at_once: int, dtype: torch.dtype, *, first: int = 0, step: int = 1
    ) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """The whole split in order, in batches of about `atoms_at_once` atoms: (indices, batch).

        With `first` and `step` only every `step`-th of these batches, from the one numbered `first` on.
        """
        n_atoms = self.store.n_atoms[self.rows.start : self.rows.stop]
        bin_of = (np.cumsum(n_atoms) - n_atoms) // atoms_at_once
        for indices in np.split(np.arange(len(self)), np.flatnonzero(np.diff(bin_of)) + 1)[first::step]:
            if len(indices):
                yield indices, Batch.make([self.part(indices)], dtype)


@dataclass(frozen=True, slots=True)
class Share:
    """What one process does in one step.

    Attributes:
        step: from 0.
        turns: one micro-batch after the other: which rows of its training split each dataset gives; none where the
            process has nothing to do in this step.
        labels: by dataset of a branch on this process, the labels that its structures of the step have, over all
            processes; datasets without structures in the step are not named.
    """

    step: int
    turns: tuple[Mapping[str, NDArray[np.int64]], ...]
    labels: Mapping[str, LabelCounts]


@dataclass(frozen=True, slots=True)
class Work:
    """A share as tensors: one batch for each of its turns."""

    share: Share
    batches: tuple[Batch, ...]


class Loader:
    """Iterates over the work of one step after the other; use as a context manager.

    One thread works `ahead` steps ahead, so memory is bounded, and the batches are those that would be made without
    it. An error in the thread is raised by the next `next()`, with the step and dataset it concerns.

    Args:
        readers: of the training splits; a turn's parts stand in their order, so those of one branch must be neighbours.
        shares: what to do in each step.
        dtype: of the batches.
        ahead: steps that may be ready and waiting.
    """

    def __init__(
        self, readers: Mapping[str, SplitReader], shares: Iterator[Share], dtype: torch.dtype, ahead: int = 2
    ) -> None:
        self._readers, self._shares, self._dtype = readers, shares, dtype
        self._ready: queue.Queue[Work | BaseException] = queue.Queue(maxsize=ahead)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="ramify-loader", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        while self._thread.is_alive():  # the thread may be waiting for room
            try:
                self._ready.get_nowait()
            except queue.Empty:
                self._thread.join(timeout=0.05)

    def __iter__(self) -> Iterator[Work]:
        return self

    def __next__(self) -> Work:
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def _work(self) -> None:
        try:
            for share in self._shares:
                self._ready.put(Work(share, tuple(self._batch(share.step, turn) for turn in share.turns)))
                if self._stopping.is_set():
                    return
        except Exception as error:
            self._ready.put(error)

    def _batch(self, step: int, turn: Mapping[str, NDArray[np.int64]]) -> Batch:
        parts = []
        for name, reader in self._readers.items():
            if name in turn:
                try:
                    parts.append(reader.part(turn[name]))
                except Exception as error:
                    error.add_note(f"in dataset '{name}', training rows {turn[name].tolist()}")
                    error.add_note(f"while the batch of step {step} was made")
                    raise
        return Batch.make(parts, self._dtype)
