"""Neighbour lists against ASE: every periodicity, skewed cells, cells smaller than the cutoff."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.neighbors.edges import SOFTNESS, find_edges
from ramify.structures import Structures

CUTOFF = 4.0


def random_atoms(seed: int) -> Atoms:
    """Up to 12 atoms in a skewed cell of 2 to 8 Å along each vector, any of the eight periodicities."""
    rng = np.random.default_rng(seed)
    lengths = rng.uniform(2.0, 8.0, 3)
    cell = np.diag(lengths) + np.tril(rng.uniform(-0.4, 0.4, (3, 3)), -1) * lengths[:, None]
    pbc = [bool(seed & 1), bool(seed & 2), bool(seed & 4)]
    n = int(rng.integers(1, 12))
    return Atoms(numbers=rng.integers(1, 90, n), positions=rng.uniform(-2, 8, (n, 3)), cell=cell, pbc=pbc)


def as_set(receiver, sender, shift) -> set[tuple[int, ...]]:
    return {(int(i), int(j), *map(int, s)) for i, j, s in zip(receiver, sender, shift, strict=True)}


@pytest.mark.parametrize("block", range(5))
def test_edges_equal_those_of_ase(block: int) -> None:
    """500 random structures, all periodicities; edges as sets of (receiver, sender, lattice steps)."""
    images = [random_atoms(100 * block + k) for k in range(100)]
    edges = find_edges(Structures.from_ase(images), CUTOFF)
    first = 0
    for atoms in images:
        own = (edges.receiver >= first) & (edges.receiver < first + len(atoms))
        found = as_set(edges.receiver[own] - first, edges.sender[own] - first, edges.shift[own])
        i, j, shift = neighbor_list("ijS", atoms, CUTOFF)
        assert found == as_set(i, j, shift)
        first += len(atoms)


def extreme_crystals() -> list[Atoms]:
    """A needle, a sheared cell whose height is a tenth of its edges, one far smaller than the cutoff; atoms far outside
    the cell."""
    rng = np.random.default_rng(3)
    cells = [np.diag([1.5, 1.7, 40.0]), np.array([[6.0, 0, 0], [5.9, 0.9, 0], [3.0, 0.3, 5.0]]), np.eye(3) * 1.3]
    return [
        Atoms(numbers=[14] * n, positions=rng.uniform(-50, 50, (n, 3)), cell=cell, pbc=True)
        for cell in cells
        for n in (1, 2, 5)
    ]


def test_extreme_cells() -> None:
    """Against ASE."""
    images = extreme_crystals()
    edges = find_edges(Structures.from_ase(images), CUTOFF)
    first = 0
    for atoms in images:
        own = (edges.receiver >= first) & (edges.receiver < first + len(atoms))
        found = as_set(edges.receiver[own] - first, edges.sender[own] - first, edges.shift[own])
        assert len(found) == own.sum()
        assert found == as_set(*neighbor_list("ijS", atoms, CUTOFF))
        first += len(atoms)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=12), st.sampled_from([None, 4, 12]))
def test_a_structure_has_the_same_edges_in_any_company(seeds: list[int], max_neighbors: int | None) -> None:
    """To the bit and in the same order: edges of a structure do not depend on the rest of the batch."""
    perfect = [bulk("Fe", cubic=True) * (2, 1, 1), bulk("NaCl", "rocksalt", a=5.6, cubic=True), bulk("Cu")]
    images = [perfect[seed % 3] if seed % 5 == 0 else random_atoms(seed) for seed in seeds]
    together = find_edges(Structures.from_ase(images), CUTOFF, max_neighbors)
    first = 0
    for atoms in images:
        alone = find_edges(Structures.from_ase([atoms]), CUTOFF, max_neighbors)
        np.testing.assert_array_equal(together.atom_cutoff[first : first + len(atoms)], alone.atom_cutoff)
        for found, expected in ((together, alone), (together.cutoff_pairs, alone.cutoff_pairs)):
            own = (found.receiver >= first) & (found.receiver < first + len(atoms))
            np.testing.assert_array_equal(found.receiver[own] - first, expected.receiver)
            np.testing.assert_array_equal(found.sender[own] - first, expected.sender)
            np.testing.assert_array_equal(found.shift[own], expected.shift)
        own = (together.cutoff_pairs.receiver >= first) & (together.cutoff_pairs.receiver < first + len(atoms))
        np.testing.assert_array_equal(together.cutoff_pairs.gain[own], alone.cutoff_pairs.gain)
        first += len(atoms)
    assert (np.diff(together.receiver) >= 0).all()


def test_one_atom_in_a_small_cell_sees_its_own_images() -> None:
    simple_cubic = Atoms("Po", cell=np.eye(3) * 3.0, pbc=True)
    edges = find_edges(Structures.from_ase([simple_cubic]), 3.1)
    assert len(edges) == 6
    assert set(edges.sender) == {0}


def test_non_periodic_structure_ignores_its_cell() -> None:
    atoms = Atoms("H2", positions=[[0, 0, 0], [0, 0, 2.9]], cell=np.eye(3) * 3.0, pbc=False)
    assert len(find_edges(Structures.from_ase([atoms]), CUTOFF)) == 2


def test_all_pairs_and_cell_list_agree() -> None:
    """The same molecule once below and once above the size at which the method changes (as 20 copies far apart)."""
    rng = np.random.default_rng(1)
    molecule = Atoms("C10", positions=rng.uniform(0, 5, (10, 3)))
    copies = Atoms()
    for k in range(20):
        shifted = molecule.copy()
        shifted.translate([40.0 * k, 0, 0])
        copies += shifted
    small = find_edges(Structures.from_ase([molecule]), CUTOFF)
    large = find_edges(Structures.from_ase([copies]), CUTOFF)
    assert len(large) == 20 * len(small)
    own = large.receiver < 10
    np.testing.assert_array_equal(large.receiver[own], small.receiver)
    np.testing.assert_array_equal(large.sender[own], small.sender)


def soft_count(radius: float, distances: np.ndarray) -> float:
    """The count of the module's docstring, written out again."""
    t = np.clip((radius - distances) / SOFTNESS + 1, 0, 1)
    return float((6 * t**5 - 15 * t**4 + 10 * t**3).sum())


@pytest.fixture
def crowd() -> Atoms:
    rng = np.random.default_rng(2)
    return Atoms("Si40", positions=rng.uniform(0, 8, (40, 3)), cell=np.eye(3) * 8, pbc=True)


def test_max_neighbors_keeps_the_nearest_within_the_adaptive_cutoff(crowd: Atoms) -> None:
    sparse = Atoms("H2", positions=[[0, 0, 0], [0, 0, 1.0]])
    edges = find_edges(Structures.from_ase([crowd, sparse]), 5.0, 8)
    assert (edges.atom_cutoff[40:] == 5.0).all()  # one neighbour: nothing is cut
    count = np.bincount(edges.receiver, minlength=42)
    assert count[:40].max() <= 8
    i, d = neighbor_list("id", crowd, 6.0)
    for atom in range(40):
        distances = np.sort(d[i == atom])
        assert soft_count(edges.atom_cutoff[atom], distances) == pytest.approx(8.5, abs=1e-9)
        assert count[atom] == (distances < edges.atom_cutoff[atom]).sum()


def test_gain_is_the_derivative_of_the_adaptive_cutoff(crowd: Atoms) -> None:
    """Against central differences of the reach while one atom moves; near the cutoff too."""
    for cutoff in (5.0, 3.0):
        structures = Structures.from_ase([crowd])
        edges = find_edges(structures, cutoff, 8)
        assert (edges.cutoff_pairs.gain > 0).all()
        step, atom, direction = 1e-5, 7, np.array([0.6, 0.0, 0.8])
        ends = []
        for sign in (1, -1):
            moved = crowd.copy()
            moved.positions[atom] += sign * step * direction
            ends.append(find_edges(Structures.from_ase([moved]), cutoff, 8).atom_cutoff)
        numeric = (ends[0] - ends[1]) / (2 * step)
        cutoff_pairs = edges.cutoff_pairs
        vector = (
            crowd.positions[cutoff_pairs.sender]
            + cutoff_pairs.shift @ crowd.cell.array
            - crowd.positions[cutoff_pairs.receiver]
        )
        along = vector @ direction / np.linalg.norm(vector, axis=1)
        moves = (cutoff_pairs.sender == atom).astype(float) - (cutoff_pairs.receiver == atom)
        analytic = np.bincount(cutoff_pairs.receiver, cutoff_pairs.gain * along * moves, minlength=40)
        np.testing.assert_allclose(analytic, numeric, atol=1e-7)
        assert np.abs(numeric).max() > 0.05


def test_equal_distances_are_treated_alike() -> None:
    """In fcc, 24 atoms have equal distances at the limit of 20 neighbours: all affect the adaptive cutoff equally."""
    edges = find_edges(Structures.from_ase([bulk("Cu")]), 5.0, 20)
    assert len(edges) == 18
    assert len(edges.cutoff_pairs) == 24
    np.testing.assert_allclose(edges.cutoff_pairs.gain, 1 / 24, rtol=1e-6)


def test_no_structures_no_edges() -> None:
    assert len(find_edges(Structures.from_ase([]), CUTOFF, 5)) == 0
