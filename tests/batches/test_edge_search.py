"""Batches whose edges are found later, on an NVIDIA GPU where there is one, are those of the loader, padded or not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from ramify.batches.batch import Batch, BatchPart
from ramify.batches.edge_search import EdgeSearch
from ramify.batches.padding import Padding
from ramify.model.graph import build_graph
from ramify.neighbors.edges import find_edges
from ramify.structures import Structures

BRANCHES = ("alloys", "molecules")
CUTOFF = 4.0
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def batches_of(max_neighbors: int | None, dtype: torch.dtype) -> tuple[Batch, Batch]:
    """A batch with edges and the same without; some of its structures are far from the origin or have no cell."""
    copper, salt, ethanol = bulk("Cu", cubic=True), bulk("NaCl", "rocksalt", a=5.6) * (1, 1, 2), molecule("CH3CH2OH")
    for k, atoms in enumerate((copper, salt, ethanol)):
        atoms.rattle(0.1, rng=np.random.default_rng(k))
    salt.translate([300.0, 0, -500.0])
    ethanol.translate([0, 0, 1000.0])
    images = {"cu": [copper, Atoms("He")], "nacl": [salt], "organic": [ethanol, molecule("H2O")]}
    parts = []
    for (name, atoms), branch in zip(images.items(), ("alloys", "alloys", "molecules"), strict=True):
        structures = Structures.from_ase(atoms)
        edges = find_edges(structures, CUTOFF, max_neighbors)
        parts.append(BatchPart(name, branch, structures, edges, np.zeros(119)))
    return Batch.make(parts, dtype), Batch.make([replace(part, edges=None) for part in parts], dtype).to(DEVICE)


def sorted_pairs(batch: Batch, kind: str) -> list[tuple[float, ...]]:
    columns = [getattr(batch, kind + end)[:, None].double() for end in ("receiver", "sender")]
    values = [batch.cutoff_gain[:, None].double()] if kind else []
    return sorted(torch.cat([*columns, getattr(batch, f"{kind}shift").double(), *values], 1).round(decimals=3).tolist())


@pytest.mark.parametrize("max_neighbors", [None, 8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_same_batch(max_neighbors: int | None, dtype: torch.dtype) -> None:
    expected, bare = batches_of(max_neighbors, dtype)
    assert not len(bare.receiver)
    found = EdgeSearch(CUTOFF, max_neighbors)(bare)
    assert EdgeSearch(CUTOFF, max_neighbors)(found) is found
    found = found.to("cpu")
    atol = 1e-10 if dtype == torch.float64 else 1e-4
    for name, tensor in expected.tensors().items():
        if name in ("receiver", "sender", "shift", "cutoff_receiver", "cutoff_sender", "cutoff_shift", "cutoff_gain"):
            continue
        torch.testing.assert_close(found.tensors()[name], tensor, rtol=0, atol=atol, equal_nan=True)
    assert found.tensors().keys() == expected.tensors().keys()
    assert sorted_pairs(found, "") == sorted_pairs(expected, "")
    if dtype == torch.float64:
        assert sorted_pairs(found, "cutoff_") == sorted_pairs(expected, "cutoff_")


@pytest.mark.parametrize("tile", [1, 8])
def test_it_can_be_padded_afterwards(tile: int) -> None:
    """On the device, with the rows that the batch of the loader gets on the CPU."""
    expected, bare = batches_of(8, torch.float64)
    padding = Padding(BRANCHES, tile, steps=True)
    expected, found = padding(expected), padding(EdgeSearch(CUTOFF, 8)(bare)).to("cpu")
    for name, tensor in expected.tensors().items():
        if "cutoff_" in name or name in ("receiver", "sender", "shift"):
            assert found.tensors()[name].shape == tensor.shape
        else:
            torch.testing.assert_close(found.tensors()[name], tensor, rtol=0, atol=1e-10, equal_nan=True)
    assert sorted_pairs(found, "") == sorted_pairs(expected, "")
    assert (found.segments, found.datasets) == (expected.segments, expected.datasets)


def test_a_graph_without_edges_is_refused() -> None:
    """A model would silently predict isolated atoms."""
    _, bare = batches_of(None, torch.float64)
    with pytest.raises(ValueError, match="no edges yet"):
        build_graph(bare, CUTOFF, bare.positions)
