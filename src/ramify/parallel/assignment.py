"""Who does what in a step: the structures of each branch are divided over its hosts, a host's over its turns.

A pure function of the step: every rank knows which structures a step takes, what each of them costs and which labels it
has, so each finds its own share and nobody has to ask. Rows follow the order of the stream, sorted within a dataset.
"""

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from ramify.batches.loader import SplitReader, StepAssignment
from ramify.batches.sampler import BatchSampler
from ramify.packing import filled
from ramify.planning.placement import Placement

Rows = dict[str, NDArray[np.int64]]
"""By dataset, rows of its training split."""


def divide_work(work: NDArray[np.int64], shares: Sequence[float]) -> NDArray[np.int64]:
    """Which of several hosts takes each structure: the largest first, each goes to whoever lacks most of its share.

    With equal shares this is Graham's rule (SIAM J. Appl. Math. 17, 416 (1969)): the hosts' loads differ by no more
    than the smallest structures. A host whose share is 0 gets nothing.

    Args:
        work: (n,) of each structure, any unit.
        shares: of each host, adding up to 1.

    Returns:
        (n,) the position of the host in `shares`.
    """
    total = float(work.sum())
    lacking = [(-fraction * total, host) for host, fraction in enumerate(shares) if fraction > 0]
    heapq.heapify(lacking)
    taker = np.zeros(len(work), np.int64)
    for index in np.argsort(-work, kind="stable").tolist():
        missing, host = lacking[0]
        taker[index] = host
        heapq.heapreplace(lacking, (missing + float(work[index]), host))
    return taker


@dataclass(frozen=True, slots=True)
class MicroBatchLimit:
    """The most that one turn may hold; a single structure above it has a turn of its own."""

    atoms: float = math.inf
    edges: float = math.inf

    def micro_batches(self, atoms: NDArray[np.int64], edges: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) the turn, from 0, of each of n structures: in their order, as many as fit."""
        micro_batch = np.zeros(len(atoms), np.int64)
        for index, some in enumerate(filled((atoms, edges), (self.atoms, self.edges))):
            micro_batch[some] = index
        return micro_batch


class Assigner:
    """The shares of one rank.

    Args:
        stream: which structures each step takes.
        readers: of the training splits of the datasets on this rank, in the order they stand in a batch.
        placement: of the branches.
        rank: this one.
        budget: of a turn.
        stress: whether labels of stress are trained on.
    """

    def __init__(
        self,
        sampler: BatchSampler,
        readers: Mapping[str, SplitReader],
        placement: Placement,
        rank: int,
        budget: MicroBatchLimit | None = None,
        *,
        stress: bool = False,
    ) -> None:
        self._sampler, self._readers = sampler, readers
        self._placement, self._rank = placement, rank
        self._budget, self._stress = budget or MicroBatchLimit(), stress

    def assignments(self, start: int) -> Iterator[StepAssignment]:
        """The shares of the steps `start`, `start + 1`, ... without end."""
        positions = self._sampler.position(start)
        for step in count(start):
            taken = self._sampler.counts(step)
            rows = {
                name: np.sort(self._sampler.rows(name, positions[name], taken[name]))
                for name in self._readers
                if taken[name]
            }
            yield self._assignment(step, rows)
            positions = {name: position + taken[name] for name, position in positions.items()}

    def _assignment(self, step: int, rows: Rows) -> StepAssignment:
        labels = {n: self._readers[n].label_counts(r, stress=self._stress) for n, r in rows.items()}
        own: Rows = {}
        for branch in dict.fromkeys(self._readers[name].branch for name in rows):
            own |= self._own(branch, {n: r for n, r in rows.items() if self._readers[n].branch == branch})
        return StepAssignment(step, tuple(self._micro_batches(own)), labels)

    def _own(self, branch: str, rows: Rows) -> Rows:
        """What this rank takes of the rows of one branch."""
        hosts = self._placement.hosts[branch]
        if len(hosts) == 1:
            return rows
        # an atom counts as one edge more, so that isolated atoms are not free
        work = [self._readers[n].edge_counts(r) + self._readers[n].atom_counts(r) for n, r in rows.items()]
        mine = divide_work(np.concatenate(work), self._placement.shares[branch]) == hosts.index(self._rank)
        return _pieces(rows, mine)

    def _micro_batches(self, own: Rows) -> Iterator[Rows]:
        if not own:
            return
        atoms = np.concatenate([self._readers[n].atom_counts(r) for n, r in own.items()])
        edges = np.concatenate([self._readers[n].edge_counts(r) for n, r in own.items()])
        micro_batch = self._budget.micro_batches(atoms, edges)
        for index in range(int(micro_batch[-1]) + 1):
            yield _pieces(own, micro_batch == index)


def _pieces(rows: Rows, chosen: NDArray[np.bool_]) -> Rows:
    """The rows that are chosen; `chosen` is (n,) for those of all datasets one after the other."""
    pieces, first = {}, 0
    for name, r in rows.items():
        piece = r[chosen[first : first + len(r)]]
        first += len(r)
        if len(piece):
            pieces[name] = piece
    return pieces
