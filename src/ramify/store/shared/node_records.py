"""Records in memory that the ranks of one node share: each holds its own, and loads those of the others directly."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ramify.store.shared.records import Rows, Words

if TYPE_CHECKING:
    from mpi4py import MPI


class NodeRecords:
    """The shares of those ranks of a group that run on this node, one after the other in one piece of memory.

    A common act of all ranks of the group.

    Args:
        mpi: the module `mpi4py.MPI`.
        group: of ranks.
        words: (ranks,) 32-bit words that each of them holds.

    Attributes:
        size: how many ranks of the group are on this node.
        words: what they hold, in the order of their ranks.
        first: (ranks,) where in `words` the share of each rank of the group begins; -1 for those on other nodes.
        own: the share of this rank, to be filled by it.
    """

    def __init__(self, mpi: Any, group: "MPI.Intracomm", words: Rows) -> None:
        node = group.Split_type(mpi.COMM_TYPE_SHARED, key=group.rank)
        self.size: int = node.size
        members = np.empty(node.size, np.int64)
        node.Allgather(np.array([group.rank]), members)
        held = words[members]
        self.first: Rows = np.full(group.size, -1)
        self.first[members] = np.cumsum(held) - held
        # without `alloc_shared_noncontig` MPI puts the parts side by side, in the order of the ranks (MPI 4.1, 12.2.3)
        self._window = mpi.Win.Allocate_shared(4 * int(words[group.rank]), 1, comm=node)
        node.Free()
        begin = self._window.Shared_query(mpi.PROC_NULL)[0].address  # of the first rank that holds anything
        whole = mpi.memory.fromaddress(begin, 4 * int(held.sum()))
        self.words: Words = np.frombuffer(whole, np.uint32)
        at = int(self.first[group.rank])
        self.own: Words = self.words[at : at + int(words[group.rank])]
        self._window.Lock_all(mpi.MODE_NOCHECK)

    def sync(self) -> None:
        """What was written becomes visible to other ranks, and what they wrote to this one; with a barrier between."""
        self._window.Sync()

    def free(self) -> None:
        """Gives the memory back; all ranks of the node together."""
        self.words = self.own = np.empty(0, np.uint32)
        self._window.Unlock_all()
        self._window.Free()
