"""Edges found by PyTorch on the device of a batch are those of the CPU: any periodicity, cell and limit. The device is
an NVIDIA GPU where there is one, else the CPU."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.neighbors import device_pairs
from ramify.neighbors.device_edges import TensorEdges, find_edges_on_device
from ramify.neighbors.device_pairs import TensorPairs, pairs_within
from ramify.neighbors.distances import complete_cells
from ramify.neighbors.edges import Edges, find_edges
from ramify.structures import Structures
from tests.neighbors.test_neighbors import as_set, extreme_crystals, random_atoms

CUTOFF = 4.0
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Given = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def tensors_of(structures: Structures) -> Given:
    cell = complete_cells(structures.cell.astype(np.float64), structures.pbc, np.ones(len(structures)))
    arrays = (structures.positions.astype(np.float64), structures.structure_of_atom, cell, structures.pbc)
    return tuple(torch.from_numpy(np.ascontiguousarray(array)).to(DEVICE) for array in arrays)


def steps_of(pairs: TensorPairs, given: Given) -> np.ndarray:
    _, structure, cell, _ = given
    steps = torch.einsum("pc,pck->pk", pairs.shift, torch.linalg.inv(cell)[structure[pairs.receiver]])
    assert (steps - steps.round()).abs().max() < 1e-6 if len(steps) else True
    return steps.round().long().cpu().numpy()


def keyed(receiver: np.ndarray, sender: np.ndarray, shift: np.ndarray, *values: np.ndarray) -> dict[tuple, tuple]:
    keys = zip(receiver.tolist(), sender.tolist(), map(tuple, shift.tolist()), strict=True)
    found = dict(zip(keys, zip(*values, strict=True), strict=True)) if values else dict.fromkeys(keys, ())
    assert len(found) == len(receiver)
    return found


def compare(found: TensorEdges, expected: Edges, given: Given) -> None:
    np.testing.assert_allclose(found.atom_cutoff.cpu().numpy(), expected.atom_cutoff, rtol=0, atol=1e-11)
    assert (torch.diff(found.pairs.receiver) >= 0).all()
    pairs = found.pairs
    a = keyed(pairs.receiver.cpu().numpy(), pairs.sender.cpu().numpy(), steps_of(pairs, given))
    assert a == keyed(expected.receiver, expected.sender, expected.shift)
    pairs, near = found.cutoff_pairs, expected.cutoff_pairs
    a = keyed(
        pairs.receiver.cpu().numpy(), pairs.sender.cpu().numpy(), steps_of(pairs, given), found.gain.cpu().numpy()
    )
    b = keyed(near.receiver, near.sender, near.shift, near.gain)
    for key in a.keys() ^ b.keys():  # a gain of rounding size
        assert a.get(key, b.get(key))[0] < 1e-9
    for key in a.keys() & b.keys():
        assert a[key][0] == pytest.approx(b[key][0], abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=10), st.sampled_from([None, 1, 4, 12]))
def test_edges_equal_those_of_the_cpu(seeds: list[int], max_neighbors: int | None) -> None:
    """Random structures of any periodicity, and perfect crystals with many equal distances."""
    perfect = [bulk("Fe", cubic=True) * (2, 1, 1), bulk("NaCl", "rocksalt", a=5.6, cubic=True), bulk("Cu")]
    images = [perfect[seed % 3] if seed % 5 == 0 else random_atoms(seed) for seed in seeds]
    structures = Structures.from_ase(images)
    given = tensors_of(structures)
    found = find_edges_on_device(*given, CUTOFF, max_neighbors)
    compare(found, find_edges(structures, CUTOFF, max_neighbors), given)


def test_pairs_equal_those_of_ase() -> None:
    images = [random_atoms(seed) for seed in range(200)]
    given = tensors_of(Structures.from_ase(images))
    pairs = pairs_within(*given, CUTOFF)
    steps, first = steps_of(pairs, given), 0
    for atoms in images:
        own = ((pairs.receiver >= first) & (pairs.receiver < first + len(atoms))).cpu().numpy()
        found = as_set(pairs.receiver.cpu().numpy()[own] - first, pairs.sender.cpu().numpy()[own] - first, steps[own])
        i, j, shift, distance = neighbor_list("ijSd", atoms, CUTOFF)
        assert found == as_set(i, j, shift)
        np.testing.assert_allclose(np.sort(pairs.distance.cpu().numpy()[own]), np.sort(distance), rtol=0, atol=1e-12)
        first += len(atoms)


def test_extreme_cells_and_positions() -> None:
    """Extreme crystals, and molecules whose parts are 30 km apart, with more bins than numbers."""
    images = extreme_crystals()
    images += [Atoms("H4", positions=[[0, 0, 0], [0, 0, 1], [3e14, 0, 0], [3e14, 0, 2]]), Atoms("H")]
    structures = Structures.from_ase(images)
    given = tensors_of(structures)
    compare(find_edges_on_device(*given, CUTOFF, None), find_edges(structures, CUTOFF), given)


@pytest.mark.parametrize("max_neighbors", [None, 12])
def test_a_large_structure_in_small_passes(monkeypatch: pytest.MonkeyPatch, max_neighbors: int | None) -> None:
    """2,048 atoms in more than three bins along each axis, whose candidates need many passes; two small structures."""
    monkeypatch.setattr(device_pairs, "CANDIDATES_AT_ONCE", 5000)
    large = bulk("Cu", cubic=True) * (8, 8, 8)
    large.rattle(0.1, seed=0)
    slab = large[large.positions[:, 2] < 9.0]
    slab.pbc = (True, True, False)
    structures = Structures.from_ase([random_atoms(7), large, slab, random_atoms(8)])
    given = tensors_of(structures)
    found = find_edges_on_device(*given, CUTOFF, max_neighbors)
    compare(found, find_edges(structures, CUTOFF, max_neighbors), given)


def test_atoms_on_the_boundaries_of_cells_and_bins() -> None:
    """Fractions that are 0, 1 or just below 0, for which rounding decides the bin."""
    a = 3 * CUTOFF * (1 + device_pairs.SLACK)
    x = np.array([0.0, -1e-17, a, a / 3, np.nextafter(a / 3, 0), 2 * a / 3, a - 0.5, 0.5])
    atoms = Atoms(numbers=[6] * 8, positions=np.stack([x, 0.7 * np.arange(8), 0 * x], 1), cell=np.eye(3) * a, pbc=True)
    structures = Structures.from_ase([atoms])
    given = tensors_of(structures)
    compare(find_edges_on_device(*given, CUTOFF, None), find_edges(structures, CUTOFF), given)
