"""Batches for the steps to come, assembled by a thread while the current step runs."""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from ramify.data.batch import Batch, Part
from ramify.data.edge_table import BYTES_PER_EDGE, EdgeTable
from ramify.data.neighbors import find_edges
from ramify.data.store import Store
from ramify.data.stream import Stream

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

    def part(self, indices: NDArray[np.int64]) -> Part:
        """The structures at `indices` of the split, with their edges."""
        rows = self.rows.start + indices
        structures = self.store.take(rows)
        if self._table is not None:
            edges = self._table.take(rows)
        else:
            edges = find_edges(structures, self._cutoff, self._max_neighbors)
        return Part(self.dataset, self.branch, structures, edges, self.store.references)

    def batches(self, atoms_at_once: int, dtype: torch.dtype) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """The whole split in order, in batches of about `atoms_at_once` atoms: (indices, batch)."""
        n_atoms = self.store.n_atoms[self.rows.start : self.rows.stop]
        bin_of = (np.cumsum(n_atoms) - n_atoms) // atoms_at_once
        for indices in np.split(np.arange(len(self)), np.flatnonzero(np.diff(bin_of)) + 1):
            if len(indices):
                yield indices, Batch.make([self.part(indices)], dtype)


class Loader:
    """Iterates over the batches of steps `start`, `start + 1`, ... without end; use as a context manager.

    One thread works `ahead` batches ahead, so memory is bounded, and the batches are those that would be made without
    it. An error in the thread is raised by the next `next()`, with the step and dataset it concerns.
    """

    def __init__(
        self, stream: Stream, readers: Mapping[str, SplitReader], start: int, dtype: torch.dtype, ahead: int = 2
    ) -> None:
        self._stream, self._readers, self._dtype = stream, readers, dtype
        self._step = start
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=ahead)
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

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def _work(self) -> None:
        positions = self._stream.position(self._step)
        while not self._stopping.is_set():
            try:
                item: Batch | BaseException = self._make(positions)
            except Exception as error:
                error.add_note(f"while the batch of step {self._step} was made")
                item = error
            self._ready.put(item)
            if isinstance(item, BaseException):
                return
            self._step += 1

    def _make(self, positions: dict[str, int]) -> Batch:
        """The batch of the current step; datasets of one branch stand side by side. Moves `positions` on."""
        counts = self._stream.counts(self._step)
        parts = []
        for name, reader in sorted(self._readers.items(), key=lambda item: item[1].branch):
            if counts[name]:
                rows = self._stream.rows(name, positions[name], counts[name])
                try:
                    parts.append(reader.part(np.sort(rows)))
                except Exception as error:
                    error.add_note(f"in dataset '{name}', training rows {rows.tolist()}")
                    raise
                positions[name] += counts[name]
        return Batch.make(parts, self._dtype)
