"""Columns spread over the memory of a group of processes; every process reads any structure with one-sided MPI reads.

Each rank of a group holds a contiguous share of the rows as records (`ramify.data.records`), in a window that stays
open to all for the whole run (a passive-target epoch: no rank has to answer, no batch waits for another's). A batch
looks up who holds what, copies this rank's own records directly, issues the reads of all others together, neighbouring
rows as one, and completes them at once.
"""

import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ramify.data.blocks import memory_of
from ramify.data.homes import TAKEN, Columns, Rows
from ramify.data.open_files import open_files
from ramify.data.records import Words, record_words, unpack
from ramify.data.row_index import RowIndex
from ramify.data.share import load_share, shared_n_atoms
from ramify.data.store import Store
from ramify.errors import RamifyError

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
            n_atoms, release = shared_n_atoms(files)
            return files.path, files.manifest, n_atoms, release, RowIndex(n_atoms, record_words)

    folder, manifest, n_atoms, release, index = _agreed(group, look)
    home = DistributedHome(mpi, group, index, release)

    def load() -> Store:
        with open_files(path) as files:
            rows = range(*home.shares[group.rank : group.rank + 2])
            load_share(files, n_atoms, rows, index, home.memory, progress)
        return Store(folder, manifest, n_atoms, home)

    try:
        store = _agreed(group, load)
    except BaseException:
        home.close()
        raise
    home.open_to_others()
    return store


class DistributedHome:
    """The columns of a store in windows of the ranks of a group.

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
        size = 4 * int(np.diff(self._first_words)[group.rank])
        self._window = _agreed(group, lambda: mpi.Win.Allocate(size, 1, comm=group))
        self.memory: Words = np.frombuffer(self._window.tomemory(), np.uint32, size // 4)
        self._window.Lock_all(mpi.MODE_NOCHECK)
        self._buffers = threading.local()
        self._answering: _Answering | None = None
        _open.append(self)

    def open_to_others(self) -> None:
        """Lets the other ranks read what is now in `memory`; returns when they may be read too."""
        self._window.Sync()
        self._group.Barrier()
        self._window.Sync()
        if not self._is_shared_memory():
            self._answering = _Answering(self._group)

    def take(self, rows: Rows, n_atoms: Rows, columns: Sequence[str] = TAKEN) -> Columns:
        """See `Home`; whole records are fetched, whichever columns are asked for."""
        words, at = record_words(n_atoms), self._index.starts(rows)
        order = np.argsort(rows, kind="stable")  # so that neighbours meet
        place = np.empty_like(at)
        ordered = words[order]
        place[order] = np.cumsum(ordered) - ordered
        buffer = self._buffer(int(words.sum()))
        if len(rows):
            self._fetch(buffer, rows[order], at[order], place[order], ordered)
        found = unpack(buffer, place, n_atoms)
        return {name: found[name] for name in columns}

    def load(self) -> None:
        """See `Home`: there is nothing to do."""

    def close(self) -> None:
        """See `Home`; all ranks of the group together."""
        if self._answering is not None:
            self._answering.stop()
            self._answering = None
        if self._window is not None:
            _open.remove(self)
            self.memory = np.empty(0, np.uint32)
            self._group.Barrier()  # someone may be reading still
            self._window.Unlock_all()
            self._window.Free()
            self._group.Free()
            self._window = None
            self._release()

    def _fetch(self, buffer: Words, rows: Rows, at: Rows, place: Rows, words: Rows) -> None:
        """Copies records, ascending by row, into their places in `buffer`: this rank's own, and those of others."""
        owner = np.searchsorted(self._first_rows, rows, side="right") - 1
        apart = (rows[1:] != rows[:-1] + 1) | (owner[1:] != owner[:-1])
        first = np.concatenate([[0], np.flatnonzero(apart) + 1])
        owner = owner[first]
        runs = zip(
            owner.tolist(),
            (4 * (at[first] - self._first_words[owner])).tolist(),
            (4 * place[first]).tolist(),
            (4 * np.add.reduceat(words, first)).tolist(),
            strict=True,
        )
        own, target, byte = memory_of(self.memory), memory_of(buffer), self._mpi.BYTE
        get, rank, waiting = self._window.Get, self._group.rank, False
        with _turn:
            for holder, begin, to, size in runs:
                if holder == rank:
                    target[to : to + size] = own[begin : begin + size]
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

    def _is_shared_memory(self) -> bool:
        """Whether all ranks can load from one another's windows: such reads need nobody's help."""
        try:
            sizes = [self._window.Shared_query(rank)[0].nbytes for rank in range(self._group.size)]
            shared = all(size > 0 for size, words in zip(sizes, np.diff(self._first_words), strict=True) if words)
        except self._mpi.Exception:  # not asked of such windows before MPI 4.1
            shared = self._group.size == 1
        return bool(self._group.allreduce(shared, op=self._mpi.LAND))


_open: list[DistributedHome] = []
"""Homes that are open in this process, in the order in which they were opened, which is the same on all ranks."""


def close_all() -> None:
    """Closes what is still open; all ranks together, when they are through."""
    for home in list(_open):
        home.close()


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
    """A thread that lets MPI answer other ranks' reads while this process is busy elsewhere.

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
    for rank, text in enumerate(group.allgather(failure)):
        if text:
            raise RamifyError(text if rank == group.rank else f"rank {rank} of the group of {group.size}: {text}")
    return result  # type: ignore[return-value]


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
