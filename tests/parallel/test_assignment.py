"""Assignment of a step to ranks: each structure once, in the stated fractions, within budgets; counts of labels."""

import math
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ramify.batches.batch import Batch
from ramify.batches.loader import SplitReader, StepAssignment
from ramify.batches.open import open_split, open_stores
from ramify.batches.sampler import BatchSampler
from ramify.batches.sampling import sampling_weights
from ramify.parallel.assignment import Assigner, MicroBatchLimit, divide_work
from ramify.planning.placement import Placement, place
from ramify.recipe import Recipe

from .conftest import FIVE, MakeFive

WORK = {"alloys": 500.0, "waters": 20.0, "bare": 40.0, "partly": 150.0, "clusters": 90.0}
PLACEMENTS: dict[str, tuple[Any, int]] = {
    "alone": ("replicated", 1),
    "replicated": ("replicated", 6),
    "several branches on a rank": ("per-branch", 2),
    "groups by work": ("per-branch", 9),
    "equal groups": ("per-branch-even", 10),
    "uneven shares": ("balanced", 4),
    "explicit": ({"alloys": [0, 2], "waters": [1], "bare": [0, 1, 2], "partly": [1], "clusters": [2, 0]}, 3),
}
works = st.lists(st.integers(0, 2000), max_size=60).map(np.array).map(lambda w: w.astype(np.int64))
shares = st.lists(st.integers(0, 9), min_size=1, max_size=7).filter(any).map(lambda w: [x / sum(w) for x in w])


@given(works, shares)
def test_hosts_get_their_shares(work: NDArray[np.int64], shares: list[float]) -> None:
    """To within the largest structure: a rank above its fraction was below it before its last structure."""
    taker = divide_work(work, shares)
    assert len(taker) == len(work)
    loads = np.bincount(taker, work, minlength=len(shares)) if len(work) else np.zeros(len(shares))
    targets = np.array(shares) * work.sum()
    largest = work.max() if len(work) else 0
    assert (loads <= targets + largest + 1e-6).all()
    assert (loads >= targets - len(shares) * largest - 1e-6).all()
    assert not loads[np.array(shares) == 0].any()
    np.testing.assert_array_equal(divide_work(work, shares), taker)


@given(works.filter(len), st.integers(1, 7))
def test_equal_hosts_differ_by_a_smallest_structure(work: NDArray[np.int64], hosts: int) -> None:
    """Without the last and smallest it took, the fullest host has no more than the emptiest."""
    taker = divide_work(work, [1 / hosts] * hosts)
    loads = np.bincount(taker, work, minlength=hosts)
    assert loads.max() - work[taker == loads.argmax()].min() <= loads.min() + 1e-6


def test_many_structures_are_level() -> None:
    rng = np.random.default_rng(0)
    work = rng.gamma(2.0, 150.0, 2000).astype(np.int64)
    loads = np.bincount(divide_work(work, [1 / 16] * 16), work)
    assert loads.max() / loads.mean() < 1.001


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 900)), min_size=1), st.integers(1, 120), st.integers(1, 999)
)
def test_turns_keep_the_budget(sizes: list[tuple[int, int]], atoms: int, edges: int) -> None:
    a, e = np.array(sizes, np.int64).T
    micro_batch = MicroBatchLimit(atoms, edges).micro_batches(a, e)
    assert micro_batch[0] == 0
    assert set(np.diff(micro_batch)) <= {0, 1}  # in order, none empty
    for index in range(micro_batch[-1] + 1):
        within = micro_batch == index
        assert within.sum() == 1 or (a[within].sum() <= atoms and e[within].sum() <= edges)
        if index:  # what opens a turn did not fit into the one before
            before, opener = micro_batch == index - 1, np.flatnonzero(within)[0]
            assert a[before].sum() + a[opener] > atoms or e[before].sum() + e[opener] > edges
    assert not MicroBatchLimit().micro_batches(a, e).any()


@pytest.fixture(scope="module")
def readers(five: MakeFive) -> dict[str, SplitReader]:
    recipe = five()
    return open_split(recipe, open_stores(recipe), "train")


def stream_of(readers: dict[str, SplitReader], batch: int) -> BatchSampler:
    sizes = {name: len(reader) for name, reader in readers.items()}
    return BatchSampler(sizes, sampling_weights(sizes, "equal", 2.0), batch, 0)


def assigner(
    readers: dict[str, SplitReader],
    sampler: BatchSampler,
    placement: Placement,
    rank: int,
    budget: MicroBatchLimit | None = None,
) -> Assigner:
    """Of one rank, which has the readers of its branches only."""
    hosted = {name: reader for name, reader in readers.items() if name in placement.hosted(rank)}
    return Assigner(sampler, hosted, placement, rank, budget)


def taken(share: StepAssignment) -> dict[str, list[int]]:
    """All rows of an assignment by dataset, over all micro-batches."""
    rows: dict[str, list[int]] = {}
    for micro_batch in share.micro_batches:
        for name, r in micro_batch.items():
            rows.setdefault(name, []).extend(r.tolist())
    return rows


@pytest.mark.parametrize("which", PLACEMENTS)
@pytest.mark.parametrize("batch", [1, 7, 40])
def test_every_structure_once_per_pass(readers: dict[str, SplitReader], which: str, batch: int) -> None:
    """Over all ranks and micro-batches: the rows of each step are those of the sampler, each row once per pass."""
    kind, world = PLACEMENTS[which]
    placement = place(kind, WORK, world)
    sampler = stream_of(readers, batch)
    steps = math.ceil(2 * 172 / batch)
    ranks = [
        assigner(readers, sampler, placement, rank, MicroBatchLimit(20, 150)).assignments(3) for rank in range(world)
    ]
    seen: dict[str, list[int]] = {name: [] for name in FIVE}
    position, idle = sampler.position(3), 0
    for step in range(3, 3 + steps):
        together: dict[str, list[int]] = {}
        for share in (next(shares) for shares in ranks):
            assert share.step == step
            idle += not share.micro_batches
            for name, rows in taken(share).items():
                together.setdefault(name, []).extend(rows)
        for name, count in sampler.counts(step).items():
            expected = sampler.rows(name, position[name], count)
            assert sorted(together.get(name, [])) == sorted(expected.tolist())
            position[name] += count
            seen[name] += together.get(name, [])
    if batch > 1 or world == 1:
        return
    assert idle  # a rank may have nothing to do
    for name, rows in seen.items():
        size = len(readers[name])
        begun = -sampler.position(3)[name] % size  # rows of the pass that was under way
        for start in range(begun, len(rows) - size + 1, size):
            assert sorted(rows[start : start + size]) == list(range(size))


def test_a_group_is_level_in_edges(readers: dict[str, SplitReader]) -> None:
    """Clusters of 2 to 13 atoms on two ranks: their edges differ by less than one structure in every step."""
    placement = place({name: [0, 1] if name == "clusters" else [0] for name in FIVE}, WORK, 2)
    placement = Placement("explicit", 2, placement.hosts, placement.shares | {"clusters": (0.5, 0.5)}, "")
    sampler = stream_of(readers, 40)
    reader = readers["clusters"]
    ranks = [assigner(readers, sampler, placement, rank).assignments(0) for rank in range(2)]
    counts = []
    for _ in range(20):
        own = [np.array(taken(next(shares)).get("clusters", []), np.int64) for shares in ranks]
        work = [int((reader.edge_counts(r) + reader.atom_counts(r)).sum()) for r in own]
        smallest = min(int(reader.edge_counts(r).min()) for r in own if len(r))
        assert abs(work[0] - work[1]) <= max(smallest + 13, 40)
        counts.append(len(own[0]) - len(own[1]))
    assert any(counts)  # level in edges is not level in structures


@pytest.mark.parametrize("stress", [True, False])
def test_labels_are_counted_as_the_objective_counts(readers: dict[str, SplitReader], stress: bool) -> None:
    """By the rule of the loss, on the batch as tensors: rows whose label is whole; stress only with a cell."""
    sampler = stream_of(readers, 40)
    for share in islice(Assigner(sampler, readers, Placement.alone(FIVE), 0, stress=stress).assignments(0), 12):
        batch = Batch.make([readers[name].part(rows) for name, rows in share.micro_batches[0].items()], torch.float64)
        assert set(share.labels) == {segment.name for segment in batch.datasets}
        for segment in batch.datasets:
            known = ~torch.isnan(batch.stress[segment.structures]).any(2).any(1)
            labels = share.labels[segment.name]
            assert labels.energy == int((~torch.isnan(batch.energy[segment.structures])).sum())
            assert labels.forces == int((~torch.isnan(batch.forces[segment.atoms]).any(1)).sum())
            assert labels.stress == (int((known & (batch.volume[segment.structures] > 0)).sum()) if stress else 0)


def test_without_a_table_edges_are_estimated(five: MakeFive, readers: dict[str, SplitReader]) -> None:
    recipe: Recipe = five(train__edge_cache=0.0)
    without = open_split(recipe, open_stores(recipe), "train")["alloys"]
    rows = np.array([3, 0, 3])
    np.testing.assert_array_equal(without.edge_counts(rows), 6 * without.atom_counts(rows))
    found = [len(readers["alloys"].part(np.array([row])).edges) for row in rows]
    np.testing.assert_array_equal(readers["alloys"].edge_counts(rows), found)
