"""Columns spread over the memory of a group of processes; every process reads any structure with one-sided MPI reads.

Each rank of a group holds a contiguous share of the rows as records (`ramify.store.shared.records`), in memory that the
ranks of its node share and read as their own. Where the group spans several nodes, the memory is also an MPI window,
open to all for the whole run (a passive-target epoch: no rank has to answer, no batch waits for another's). A batch
then looks up who holds what, copies the node's own records directly, issues the reads of all others together,
neighbouring rows as one, and completes them at once.
"""

import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ramify.errors import RamifyError
from ramify.store.blocks import memory_of
from ramify.store.columns import COLUMNS
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
Progress = Callable[[int], None]

ANSWER_EVERY = 0.001
"""Seconds between two looks at the network, where reads need the help of the rank that holds the rows."""


def open_distributed(
    path: Path | str,
    *,
    ranks: Sequence[int] | None = None,
    width: int | None = None,
    progress: Progress = lambda done: None,
) -> Store:
    """Opens a store, of either form, whose columns are spread over processes. Each of `ranks` must call it.

    Closing the store is a common act of these ranks too.

    Args:
        path: folder of the store.
        ranks: of MPI's world, who share it; None for all.
        width: how many ranks hold one copy together, at least; None for one copy over all. A small width needs more
            memory, a large one more traffic.
        progress: hears how many bytes this rank has read.

    Raises:
        RamifyError: on all of `ranks`, if any of them cannot read its share or has no room for it.
    """
    mpi = _mpi()
    group = _group(mpi, ranks, width)

    def look() -> tuple[Any, ...]:
        with open_files(path) as files:
            if further := [name for name in files.manifest.columns if name not in COLUMNS]:
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
            load_shard(files, n_atoms, rows, index, storage.memory, progress)
        return Store(folder, manifest, n_atoms, storage)

    try:
        store = _agreed(group, load)
    except BaseException:
        storage.close()
        raise
    storage.open_to_others()
    return store


class DistributedStorage:
    """The columns of a store in the memory of the ranks of a group.

    Args:
        mpi: the module `mpi4py.MPI`.
        group: whose ranks hold one copy together.
        index: where the record of each row begins, in words, if all lay one after the other.
        release: called when the home is closed.

    Attributes:
        shares: rank k of the group holds the rows from `shares[k]` to `shares[k + 1]`.
        memory: this rank's records.
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
        """Lets the other ranks read what is now in `memory`; returns when they may be read too."""
        self._sync()
        self._group.Barrier()
        self._sync()
        if self._window is not None:
            self._answering = _Answering(self._group)

    def take(self, rows: Rows, n_atoms: Rows, columns: Sequence[str] = TAKEN) -> Columns:
        """See `Home`; whole records are fetched, whichever columns are asked for."""
        at = self._index.starts(rows)
        if self._window is None:
            return unpack(self._node.words, at, n_atoms, columns)  # the node's ranks in order are all: nothing to move
        words = record_words(n_atoms)
        order = np.argsort(rows, kind="stable")  # so that neighbours meet
        place = np.empty_like(at)
        ordered = words[order]
        place[order] = np.cumsum(ordered) - ordered
        buffer = self._buffer(int(words.sum()))
        if len(rows):
            self._fetch(buffer, rows[order], at[order], place[order], ordered)
        return unpack(buffer, place, n_atoms, columns)

    def load(self) -> None:
        """See `Home`: there is nothing to do."""

    def close(self) -> None:
        """See `Home`; all ranks of the group together."""
        if self._answering is not None:
            self._answering.stop()
            self._answering = None
        if self._is_open:
            self._is_open = False
            _open.remove(self)
            self.memory = np.empty(0, np.uint32)
            self._group.Barrier()  # someone may be reading still
            if self._window is not None:
                self._window.Unlock_all()
                self._window.Free()
            self._node.free()
            self._group.Free()
            self._release()

    def _fetch(self, buffer: Words, rows: Rows, at: Rows, place: Rows, words: Rows) -> None:
        """Copies records, ascending by row, into their places in `buffer`: those of this node, and those of others."""
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
        """Memory of this thread's for the records of one batch."""
        kept: Words | None = getattr(self._buffers, "words", None)
        if kept is None or len(kept) < words:
            kept = np.empty(words * 5 // 4, np.uint32)
            self._buffers.words = kept
        return kept

    def _sync(self) -> None:
        """What was written becomes visible to others, and what they wrote to this rank."""
        self._node.sync()
        if self._window is not None:
            self._window.Sync()


_open: list[DistributedStorage] = []
"""Homes that are open in this process, in the order in which they were opened, which is the same on all ranks."""


def close_all() -> None:
    """Closes what is still open; all ranks together, when they are through."""
    for storage in list(_open):
        storage.close()


def end_others(why: str) -> None:
    """Ends all ranks where stores are shared, because this one has failed: it would otherwise wait for the others at
    its end, as MPI demands, and they for it. `why` goes to standard error before."""
    if _open:
        sys.stderr.write(why)
        sys.stderr.flush()
        _mpi().COMM_WORLD.Abort(1)


_turn = threading.Lock()
"""Of calling MPI, among the threads that make batches and the one that answers: it may not be fit for several."""


class _Answering:
    """A thread that lets MPI answer the reads of other nodes while this process is busy elsewhere.

    Over sockets, and on networks whose hardware cannot do all of it, a read waits until the process that holds the rows
    next calls MPI. If that one waits in turn for the reader, e.g. in the sum of gradients, both would wait for ever.
    """

    def __init__(self, group: "MPI.Intracomm") -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=_answer, args=(group, self._stopping), name="ramify-answers", daemon=True
        )
        self._thread.start()
        self._finalizer = weakref.finalize(self, self._stopping.set)  # at the latest before MPI is finalized

    def stop(self) -> None:
        """Returns when the thread has ended."""
        self._stopping.set()
        self._thread.join()


def _answer(group: "MPI.Intracomm", stopping: threading.Event) -> None:
    while not stopping.wait(ANSWER_EVERY):
        with _turn:
            group.Iprobe()


def _group(mpi: Any, ranks: Sequence[int] | None, width: int | None) -> "MPI.Intracomm":
    """The ranks that hold one copy together with this one."""
    world = mpi.COMM_WORLD
    expected = int(os.environ.get("WORLD_SIZE", "1"))  # as torchrun states it
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
    """The result of `work`, which every rank does; if it fails anywhere, it fails everywhere."""
    result, failure = None, ""
    try:
        result = work()
    except Exception as error:
        failure = str(error) if isinstance(error, RamifyError) else f"{type(error).__name__}: {error}"
    for rank, text in enumerate(_gathered(group, failure)):
        if text:
            raise RamifyError(text if rank == group.rank else f"rank {rank} of the group of {group.size}: {text}")
    return result  # type: ignore[return-value]


def _gathered(group: "MPI.Intracomm", text: str) -> list[str]:
    """The text of every rank; as bytes, for mpi4py would exchange objects as pickles."""
    own = np.frombuffer(text.encode(), np.uint8)
    sizes = np.empty(group.size, np.int64)
    group.Allgather(np.array([len(own)]), sizes)
    found = np.empty(int(sizes.sum()), np.uint8)
    group.Allgatherv(own, (found, sizes))
    ends = np.cumsum(sizes)
    return [found[end - size : end].tobytes().decode() for size, end in zip(sizes, ends, strict=True)]


def _mpi() -> Any:
    """`mpi4py.MPI`, which starts MPI when it is first imported."""
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
