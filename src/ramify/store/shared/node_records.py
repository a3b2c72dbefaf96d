"""Records in memory shared by the ranks of one node: each rank fills its own part and reads all parts directly."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ramify.store.shared.records import Rows, Words

if TYPE_CHECKING:
    from mpi4py import MPI


class NodeRecords:
    """Contiguous memory with the shards of the ranks of a group on this node. Creation is a collective operation.

    Args:
        mpi: the module `mpi4py.MPI`.
        group: communicator of the group.
        words: (ranks,) size of the shard of each rank in 32-bit words.

    Attributes:
        size: number of ranks of the group on this node.
        words: their shards, in the order of ranks.
        first: (ranks,) start of the shard of each rank in `words`; -1 for ranks on other nodes.
        own: shard of this rank, to be filled by it.
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
        begin = self._window.Shared_query(mpi.PROC_NULL)[0].address  # of the first rank with a non-empty shard
        whole = mpi.memory.fromaddress(begin, 4 * int(held.sum()))
        self.words: Words = np.frombuffer(whole, np.uint32)
        at = int(self.first[group.rank])
        self.own: Words = self.words[at : at + int(words[group.rank])]
        self._window.Lock_all(mpi.MODE_NOCHECK)

    def sync(self) -> None:
        """Synchronises the window (with a barrier between two calls), which makes writes visible to all ranks."""
        self._window.Sync()

    def free(self) -> None:
        """Frees the memory; a collective operation of the ranks of the node."""
        self.words = self.own = np.empty(0, np.uint32)
        self._window.Unlock_all()
        self._window.Free()
