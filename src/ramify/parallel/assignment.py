"""The assignment of the structures of a step: those of a branch to its hosts, those of a host to micro-batches.

A pure function of the step: every rank computes the structures of the step, their costs and their label counts, so each
rank derives its own assignment without communication. Rows follow the order of the sampler, sorted within a dataset.
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
"""Rows of the training split of each dataset."""


def divide_work(work: NDArray[np.int64], shares: Sequence[float]) -> NDArray[np.int64]:
    """The host of each structure: in order of decreasing work, each goes to the host furthest below its target load.

    With equal fractions this is Graham's rule (SIAM J. Appl. Math. 17, 416 (1969)): the loads of the hosts differ by at
    most the work of the smallest structures. A host with fraction 0 gets no structures.

    Args:
        work: (n,) work of each structure, in any unit.
        shares: fraction of the work of each host; they add up to 1.

    Returns:
        (n,) index of the host in `shares`.
    """
    total = float(work.sum())
    deficits = [(-fraction * total, host) for host, fraction in enumerate(shares) if fraction > 0]
    heapq.heapify(deficits)
    host_of = np.zeros(len(work), np.int64)
    for index in np.argsort(-work, kind="stable").tolist():
        deficit, host = deficits[0]
        host_of[index] = host
        heapq.heapreplace(deficits, (deficit + float(work[index]), host))
    return host_of


@dataclass(frozen=True, slots=True)
class MicroBatchLimit:
    """The largest size of a micro-batch; a structure above the limit gets a micro-batch of its own."""

    atoms: float = math.inf
    edges: float = math.inf

    def micro_batches(self, atoms: NDArray[np.int64], edges: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) the micro-batch of each of n structures, from 0: filled in the order of the structures."""
        micro_batch = np.zeros(len(atoms), np.int64)
        for index, some in enumerate(filled((atoms, edges), (self.atoms, self.edges))):
            micro_batch[some] = index
        return micro_batch


class Assigner:
    """Assigns structures to one rank.

    Args:
        sampler: draws the structures of each step.
        readers: training splits of the datasets on this rank, in their order in a batch.
        placement: of the branches.
        rank: this rank.
        budget: limit of a micro-batch.
        stress: whether stress labels are trained on.
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
        """The assignments of the steps `start`, `start + 1`, ... without end."""
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
        """The rows of one branch that are assigned to this rank."""
        hosts = self._placement.hosts[branch]
        if len(hosts) == 1:
            return rows
        # an atom counts as one additional edge, so that isolated atoms are not free
        work = [self._readers[n].edge_counts(r) + self._readers[n].atom_counts(r) for n, r in rows.items()]
        mine = divide_work(np.concatenate(work), self._placement.shares[branch]) == hosts.index(self._rank)
        return _select(rows, mine)

    def _micro_batches(self, own: Rows) -> Iterator[Rows]:
        if not own:
            return
        atoms = np.concatenate([self._readers[n].atom_counts(r) for n, r in own.items()])
        edges = np.concatenate([self._readers[n].edge_counts(r) for n, r in own.items()])
        micro_batch = self._budget.micro_batches(atoms, edges)
        for index in range(int(micro_batch[-1]) + 1):
            yield _select(own, micro_batch == index)


def _select(rows: Rows, mask: NDArray[np.bool_]) -> Rows:
    """The rows where `mask` (n,) is true; it covers the rows of all datasets in order."""
    selected, first = {}, 0
    for name, r in rows.items():
        found = r[mask[first : first + len(r)]]
        first += len(r)
        if len(found):
            selected[name] = found
    return selected
