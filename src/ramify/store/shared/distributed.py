"""Store distributed over the memory of a group of processes, which read structures by one-sided MPI communication.

Each rank of a group holds a contiguous shard of the rows as records (`ramify.store.shared.records`), in memory that the
ranks of its node access directly. If the group spans several nodes, the memory is also an MPI window, open for the
whole run (a passive-target epoch: no rank has to respond). To read a batch, a rank copies the records of its node
directly, issues all remote reads together, with consecutive rows as one read, and completes them at once.
"""

import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ramify.errors import RamifyError, error_text
from ramify.store.blocks import memory_of
from ramify.store.columns import COLUMNS, STATE_COLUMNS
from ramify.store.open_files import open_files
from ramify.store.row_index import RowIndex
from ramify.store.shared.node_records import NodeRecords
from ramify.store.shared.records import Words, record_words, unpack
from ramify.store.shared.shard import load_shard, shared_n_atoms
from ramify.store.storage import TAKEN, Columns, Rows
from ramify.store.store import Store

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")

ANSWER_EVERY = 0.001
"""Seconds between calls of the progress thread, for networks on which one-sided reads need the target process."""


def open_distributed(
    path: Path | str,
    *,
    ranks: Sequence[int] | None = None,
    width: int | None = None,
) -> Store:
    """Opens a store of either form distributed over processes. A collective operation of `ranks`, as is closing.

    Args:
        path: folder of the store.
        ranks: ranks of MPI's world that share it; None for all.
        width: minimum number of ranks that hold one copy together; None for one copy over all ranks. A small width
            needs more memory, a large one more communication.

    Raises:
        RamifyError: on all of `ranks`, if any of them cannot read its shard or has not enough memory.
    """
    mpi = _mpi()
    group = _group(mpi, ranks, width)

    def look() -> tuple[Any, ...]:
        with open_files(path) as files:
            if further := [name for name in files.manifest.columns if name not in COLUMNS | STATE_COLUMNS]:
                raise RamifyError(
                    f"data.store: distributed does not keep further labels, and {path} has {', '.join(further)}",
                    fix="set data.store: mapped or adios, or prepare the dataset without these labels",
                )
            n_atoms, release = shared_n_atoms(files)
            return files.path, files.manifest, n_atoms, release, RowIndex(n_atoms, record_words)

    folder, manifest, n_atoms, release, index = _agreed(group, look)
    storage = DistributedStorage(mpi, group, index, release)

    def load() -> Store:
        with open_files(path) as files:
            rows = range(*storage.shares[group.rank : group.rank + 2])
            load_shard(files, n_atoms, rows, index, storage.memory)
        return Store(folder, manifest, n_atoms, storage)

    try:
        store = _agreed(group, load)
    except BaseException:
        storage.close()
        raise
    storage.open_to_others()
    return store


class DistributedStorage:
    """Columns of a store distributed over the memory of the ranks of a group.

    Args:
        mpi: the module `mpi4py.MPI`.
        group: communicator of the ranks that hold one copy together.
        index: start of the record of each row, in words, in the concatenation of all records.
        release: called when the storage is closed.

    Attributes:
        shares: rank k of the group holds the rows from `shares[k]` to `shares[k + 1]`.
        memory: records of this rank.
    """

    def __init__(self, mpi: Any, group: "MPI.Intracomm", index: RowIndex, release: Callable[[], None]) -> None:
        self._mpi, self._group, self._index, self._release = mpi, group, index, release
        self.shares = index.shares(group.size)
        self._first_rows = np.array(self.shares)
        self._first_words = index.starts(self._first_rows)
        self._node = _agreed(group, lambda: NodeRecords(mpi, group, np.diff(self._first_words)))
        self.memory: Words = self._node.own
        self._window: Any = None
        if self._node.size < group.size:
            self._window = mpi.Win.Create(self.memory, 1, comm=group)
            self._window.Lock_all(mpi.MODE_NOCHECK)
        self._buffers = threading.local()
        self._answering: _Answering | None = None
        self._is_open = True
        _open.append(self)

    def open_to_others(self) -> None:
        """Makes `memory` readable for the other ranks, and waits until theirs is readable; a collective operation."""
        self._sync()
        self._group.Barrier()
        self._sync()
        if self._window is not None:
            self._answering = _Answering(self._group)

    def take(self, rows: Rows, n_atoms: Rows, columns: Sequence[str] = TAKEN) -> Columns:
        """See `ColumnStorage`; whole records are fetched for any selection of columns."""
        at = self._index.starts(rows)
        if self._window is None:
            return unpack(self._node.words, at, n_atoms, columns)  # all records are on this node: no communication
        words = record_words(n_atoms)
        order = np.argsort(rows, kind="stable")  # so that consecutive rows are adjacent
        place = np.empty_like(at)
        ordered = words[order]
        place[order] = np.cumsum(ordered) - ordered
        buffer = self._buffer(int(words.sum()))
        if len(rows):
            self._fetch(buffer, rows[order], at[order], place[order], ordered)
        return unpack(buffer, place, n_atoms, columns)

    def load(self) -> None:
        """See `ColumnStorage`: there is nothing to do."""

    def close(self) -> None:
        """See `ColumnStorage`; a collective operation of the group."""
        if self._answering is not None:
            self._answering.stop()
            self._answering = None
        if self._is_open:
            self._is_open = False
            _open.remove(self)
            self.memory = np.empty(0, np.uint32)
            self._group.Barrier()  # other ranks may still be reading
            if self._window is not None:
                self._window.Unlock_all()
                self._window.Free()
            self._node.free()
            self._group.Free()
            self._release()

    def _fetch(self, buffer: Words, rows: Rows, at: Rows, place: Rows, words: Rows) -> None:
        """Copies records, ascending by row, from this and other nodes to their positions in `buffer`."""
        owner = np.searchsorted(self._first_rows, rows, side="right") - 1
        apart = (rows[1:] != rows[:-1] + 1) | (owner[1:] != owner[:-1])
        first = np.concatenate([[0], np.flatnonzero(apart) + 1])
        owner = owner[first]
        within = at[first] - self._first_words[owner]
        here = self._node.first[owner]
        runs = zip(
            owner.tolist(),
            (here >= 0).tolist(),
            (4 * (within + np.maximum(here, 0))).tolist(),
            (4 * place[first]).tolist(),
            (4 * np.add.reduceat(words, first)).tolist(),
            strict=True,
        )
        near, target, byte = memory_of(self._node.words), memory_of(buffer), self._mpi.BYTE
        get, waiting = self._window.Get, False
        with _turn:
            for holder, is_near, begin, to, size in runs:
                if is_near:
                    target[to : to + size] = near[begin : begin + size]
                else:
                    get((target[to : to + size], byte), holder, begin)
                    waiting = True
            if waiting:
                self._window.Flush_all()

    def _buffer(self, words: int) -> Words:
        """Thread-local buffer for the records of one batch."""
        kept: Words | None = getattr(self._buffers, "words", None)
        if kept is None or len(kept) < words:
            kept = np.empty(words * 5 // 4, np.uint32)
            self._buffers.words = kept
        return kept

    def _sync(self) -> None:
        """Synchronises the window: makes writes of this rank visible to others, and theirs to this rank."""
        self._node.sync()
        if self._window is not None:
            self._window.Sync()


_open: list[DistributedStorage] = []
"""Open storages of this process, in the order of opening, which is the same on all ranks."""


def close_all() -> None:
    """Closes all open storages; a collective operation at the end."""
    for storage in list(_open):
        storage.close()


def end_others(why: str) -> None:
    """Terminates all ranks if stores are shared, because this rank has failed: at exit, MPI would otherwise make all
    ranks wait for one another. Prints `why` to standard error first."""
    if _open:
        sys.stderr.write(why)
        sys.stderr.flush()
        _mpi().COMM_WORLD.Abort(1)


_turn = threading.Lock()
"""Lock for MPI calls of the loader threads and the progress thread: MPI may not support concurrent calls."""


class _Answering:
    """A progress thread, in which MPI handles remote reads while this process computes.

    Over sockets, and on networks without full hardware support, a one-sided read waits until the target process calls
    MPI. If the target itself waits for the reader, e.g. in the sum of gradients, both would be deadlocked.
    """

    def __init__(self, group: "MPI.Intracomm") -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=_answer, args=(group, self._stopping), name="ramify-answers", daemon=True
        )
        self._thread.start()
        # at the latest at exit: a call of MPI while it is finalized would end the process
        self._finalizer = weakref.finalize(self, _end_answers, self._stopping, self._thread)

    def stop(self) -> None:
        """Stops the thread and waits for its end."""
        _end_answers(self._stopping, self._thread)


def _end_answers(stopping: threading.Event, thread: threading.Thread) -> None:
    stopping.set()
    if thread is not threading.current_thread():  # garbage may be collected in any thread
        thread.join()


def _answer(group: "MPI.Intracomm", stopping: threading.Event) -> None:
    while not stopping.wait(ANSWER_EVERY):
        with _turn:
            group.Iprobe()


def _group(mpi: Any, ranks: Sequence[int] | None, width: int | None) -> "MPI.Intracomm":
    """Communicator of the ranks that hold one copy together with this rank."""
    world = mpi.COMM_WORLD
    expected = int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun
    if world.size < expected:
        raise RamifyError(
            f"data.store: distributed needs MPI, which sees {world.size} of {expected} processes",
            fix="start with mpiexec or srun instead of torchrun, or use another data.store",
        )
    chosen = range(world.size) if ranks is None else ranks
    members = world.Create_group(world.group.Incl(list(chosen)))
    copies = 1 if width is None else max(1, members.size // width)
    group = members.Split(members.rank * copies // members.size, members.rank)
    members.Free()
    return group


def _agreed(group: "MPI.Intracomm", work: Callable[[], T]) -> T:
    """Runs `work` on every rank and returns its result; a failure of one rank raises an error on all ranks."""
    result, failure = None, ""
    try:
        result = work()
    except Exception as error:
        failure = error_text(error)
    for rank, text in enumerate(_gathered(group, failure)):
        if text:
            raise RamifyError(text if rank == group.rank else f"rank {rank} of the group of {group.size}: {text}")
    return result  # type: ignore[return-value]


def _gathered(group: "MPI.Intracomm", text: str) -> list[str]:
    """Gathers the text of every rank, as bytes, because mpi4py would pickle objects."""
    own = np.frombuffer(text.encode(), np.uint8)
    sizes = np.empty(group.size, np.int64)
    group.Allgather(np.array([len(own)]), sizes)
    found = np.empty(int(sizes.sum()), np.uint8)
    group.Allgatherv(own, (found, sizes))
    ends = np.cumsum(sizes)
    return [found[end - size : end].tobytes().decode() for size, end in zip(sizes, ends, strict=True)]


def _mpi() -> Any:
    """Imports `mpi4py.MPI`, which initialises MPI."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise RamifyError(
            f"data.store: distributed needs mpi4py and an MPI library ({error})",
            fix="pip install 'ramify[scale]'; without an MPI of the system, pip install mpich too",
        ) from None
    if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        raise RamifyError("this MPI allows calls by the main thread only", fix="use an MPI with MPI_THREAD_SERIALIZED")
    return MPI
