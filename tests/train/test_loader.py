"""Batches are those of the sampler, independent of threads and of the origin of edges."""

import threading
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ramify.batches.batch import Batch, BatchPart
from ramify.batches.edge_search import EdgeSearch
from ramify.batches.loader import Loader, SplitReader
from ramify.batches.open import open_split, open_stores
from ramify.batches.padding import PaddedBatch, Padding
from ramify.batches.sampler import BatchSampler
from ramify.batches.sampling import sampling_weights
from ramify.errors import RamifyError
from ramify.neighbors.edges import Edges, find_edges
from ramify.parallel.assignment import Assigner
from ramify.planning.placement import Placement
from tests.small import assert_same, metrics, tensors, train

from .conftest import MakeRecipe

NAMES = ("qm7x", "mptrj", "bare")


@pytest.fixture
def readers(small: MakeRecipe) -> dict[str, SplitReader]:
    recipe = small(*NAMES)
    return open_split(recipe, open_stores(recipe), "train")


@pytest.fixture
def sampler(readers: dict[str, SplitReader]) -> BatchSampler:
    sizes = {name: len(reader) for name, reader in readers.items()}
    return BatchSampler(sizes, sampling_weights(sizes, "equal", 2.0), 7, 0)


def loader_of(sampler: BatchSampler, readers: dict[str, SplitReader], start: int, ahead: int = 2) -> Loader:
    """Of one process that has all branches, its parts in the order of their names."""
    ordered = dict(sorted(readers.items()))
    assigner = Assigner(sampler, ordered, Placement.alone(NAMES), 0)
    return Loader(ordered, assigner.assignments(start), torch.float32, ahead)


def same(found: Batch, expected: Batch) -> None:
    """Equal to the bit, NaN where NaN."""
    for f in fields(Batch):
        a, b = getattr(found, f.name), getattr(expected, f.name)
        if isinstance(a, torch.Tensor):
            np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=f.name)
        else:
            assert a == b


def by_hand(sampler: BatchSampler, readers: dict[str, SplitReader], step: int) -> Batch:
    """The batch of a step, without a thread: parts in the order of their branches, rows sorted."""
    counts, position = sampler.counts(step), sampler.position(step)
    parts = []
    for name in sorted(NAMES):
        rows = np.sort(sampler.rows(name, position[name], counts[name]))
        if len(rows):
            parts.append(readers[name].part(rows))
    return Batch.make(parts, torch.float32)


@pytest.mark.parametrize("ahead", [1, 3])
def test_batches_are_those_of_the_stream(
    sampler: BatchSampler, readers: dict[str, SplitReader], monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    """With a thread that is sometimes faster and sometimes slower than the consumer."""
    expected = [by_hand(sampler, readers, step) for step in range(5, 15)]
    part = SplitReader.part
    pauses = iter(np.random.default_rng(0).choice([0.0, 0.02], 1000))

    def slow(reader: SplitReader, indices: NDArray[np.int64]) -> BatchPart:
        time.sleep(next(pauses))
        return part(reader, indices)

    monkeypatch.setattr(SplitReader, "part", slow)
    with loader_of(sampler, readers, 5, ahead) as loader:
        for k, wanted in enumerate(expected):
            time.sleep(0.03 * (k % 3 == 0))
            (batch,) = next(loader).batches
            same(batch, wanted)


def test_what_goes_wrong_in_the_thread_is_raised_with_its_place(
    sampler: BatchSampler, readers: dict[str, SplitReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))
    part = SplitReader.part

    def broken(reader: SplitReader, indices: NDArray[np.int64]) -> BatchPart:
        if next(calls) == 7:
            raise RamifyError("the store is gone")
        return part(reader, indices)

    monkeypatch.setattr(SplitReader, "part", broken)
    with loader_of(sampler, readers, 0) as loader:
        next(loader)
        next(loader)
        with pytest.raises(RamifyError, match="gone") as caught:
            next(loader)
    notes = " ".join(caught.value.__notes__)
    assert "in dataset '" in notes
    assert "training rows [" in notes
    assert "while the batch of step 2 was made" in notes


def test_a_search_that_fails_on_the_device_names_the_step(sampler: BatchSampler, small: MakeRecipe) -> None:
    """For example where the memory of the device is not enough."""
    recipe = small(*NAMES, train__neighbor_search="device")
    ordered = dict(sorted(open_split(recipe, open_stores(recipe), "train").items()))
    assigner = Assigner(sampler, ordered, Placement.alone(NAMES), 0)

    def fails(batch: Batch) -> Batch:
        raise torch.OutOfMemoryError("no memory")

    loader = Loader(ordered, assigner.assignments(3), torch.float32, search=fails)
    with loader, pytest.raises(torch.OutOfMemoryError) as caught:
        next(loader)
    assert "edges of the batch of step 3 were found on the device" in " ".join(caught.value.__notes__)


def test_the_thread_ends_with_the_loader(sampler: BatchSampler, readers: dict[str, SplitReader]) -> None:
    before = threading.active_count()
    for _ in range(3):
        with loader_of(sampler, readers, 0) as loader:
            next(loader)
    assert threading.active_count() == before


def edges_equal(found: Edges, expected: Edges) -> None:
    for name in ("receiver", "sender", "shift", "atom_cutoff"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    for name in ("receiver", "sender", "shift", "gain"):
        np.testing.assert_array_equal(
            getattr(found.cutoff_pairs, name), getattr(expected.cutoff_pairs, name), err_msg=name
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_table_of_edges_equals_finding_them(readers: dict[str, SplitReader], name: str) -> None:
    """For any rows in any order, repeats too."""
    reader = readers[name]
    assert reader._table is not None
    rng = np.random.default_rng(0)
    for size in (1, 5, 60):
        indices = rng.integers(0, len(reader), size)
        structures = reader.store.take(reader.rows.start + indices)
        edges_equal(reader.part(indices).edges, find_edges(structures, 4.0, 8))


@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_where_edges_come_from_changes_nothing(small: MakeRecipe, tmp_path: Path, kind: str) -> None:
    changes: dict[str, Any] = {"train__max_steps": 8, "model__force_head__kind": kind}
    for name, cache in (("table", 1.0), ("on the fly", 0.0)):
        trainer = train(small("qm7x", "mptrj", train__edge_cache=cache, **changes), tmp_path / name)
        assert (trainer.train["qm7x"]._table is None) == (cache == 0)
    assert_same(tensors(tmp_path / "table"), tensors(tmp_path / "on the fly"))
    assert metrics(tmp_path / "table") == metrics(tmp_path / "on the fly")


def test_batches_are_padded_after_their_edges_were_found(sampler: BatchSampler, small: MakeRecipe) -> None:
    """As those of compiled steps are."""
    found: dict[str, list[Batch]] = {}
    padding = Padding(NAMES, 8, steps=True)
    for where in ("loader", "device"):
        recipe = small(*NAMES, train__neighbor_search=where)
        ordered = dict(sorted(open_split(recipe, open_stores(recipe), "train").items()))
        assigner = Assigner(sampler, ordered, Placement.alone(NAMES), 0)
        search = EdgeSearch.of(recipe.model.encoder)
        with Loader(
            ordered, assigner.assignments(0), torch.float64, pad=lambda batch, _: padding(batch), search=search
        ) as loader:
            found[where] = [next(loader).batches[0] for _ in range(3)]
    for batch, expected in zip(found["device"], found["loader"], strict=True):
        assert isinstance(batch, PaddedBatch)
        shapes = {name: tensor.shape for name, tensor in expected.tensors().items()}
        assert {name: tensor.shape for name, tensor in batch.tensors().items()} == shapes
        assert torch.equal(batch.receiver.bincount(), expected.receiver.bincount())


@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_edges_found_on_the_device_give_the_same_run(small: MakeRecipe, tmp_path: Path, kind: str) -> None:
    """In another order, so within rounding; on the CPU here. Validation, too, reads positions only."""
    changes = {"train__max_steps": 8, "train__precision": "fp64", "model__force_head__kind": kind}
    for where in ("loader", "device"):
        recipe = small("qm7x", "mptrj", train__neighbor_search=where, **changes)
        trainer = train(recipe, tmp_path / where)
        for reader in (trainer.train["qm7x"], trainer.val["mptrj"]):
            assert (reader.part(np.arange(2)).edges is None) == (where == "device")
    found, expected = (tensors(tmp_path / where) for where in ("device", "loader"))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-10)
    for line, other in zip(metrics(tmp_path / "device", "val"), metrics(tmp_path / "loader", "val"), strict=True):
        assert line["metric"] == pytest.approx(other["metric"], abs=1e-9)


def test_a_split_is_read_in_order_each_structure_once(readers: dict[str, SplitReader]) -> None:
    for reader in readers.values():
        for atoms in (1, 17, 10**6):
            pieces = list(reader.batches(atoms, torch.float64))
            np.testing.assert_array_equal(np.concatenate([i for i, _ in pieces]), np.arange(len(reader)))
            whole = reader.part(np.arange(len(reader))).structures
            np.testing.assert_array_equal(torch.cat([b.numbers for _, b in pieces]).numpy(), whole.numbers)
        assert len(pieces) == 1
