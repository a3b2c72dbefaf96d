"""Closest distances, images included, against ASE."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.geometry import minkowski_reduce
from ase.neighborlist import neighbor_list

from ramify.neighbors.distances import closest_distances, degenerate_cells, reduce_cells
from ramify.structures import Structures


def by_ase(atoms: Atoms, expected: float) -> float:
    """The closest pair by ASE's neighbour list, looked for a little beyond the expected distance."""
    return float(neighbor_list("d", atoms, 1.02 * expected + 0.02).min())


def random_atoms(rng: np.random.Generator) -> Atoms | None:
    """A few atoms in a cell that may be small, skewed, and periodic along any axes."""
    cell = rng.normal(size=(3, 3)) * rng.uniform(1, 4)
    if rng.random() < 0.4:  # long combinations of the same lattice vectors
        cell[2] = cell[0] * rng.integers(-3, 4) + cell[1] * rng.integers(-3, 4) + cell[2] * 0.5
    if abs(np.linalg.det(cell)) < 4:
        return None
    n = int(rng.integers(1, 9))
    return Atoms(numbers=np.ones(n), positions=rng.normal(size=(n, 3)) * 5, cell=cell, pbc=rng.integers(0, 2, 3))


def test_random_cells_agree_with_ase() -> None:
    rng = np.random.default_rng(0)
    images = [atoms for _ in range(110) if (atoms := random_atoms(rng)) is not None]
    assert len(images) > 50
    found = closest_distances(Structures.from_ase(images))
    compared = 0
    for atoms, distance in zip(images, found, strict=True):
        if len(atoms) == 1 and not atoms.pbc.any():
            assert distance == np.inf
            continue
        assert distance == pytest.approx(by_ase(atoms, distance), abs=1e-9)
        compared += 1
    assert compared > 50


@pytest.mark.parametrize(
    ("atoms", "expected"),
    [
        (bulk("Cu", "fcc", a=3.6), 3.6 / np.sqrt(2)),  # one atom: only its own images
        (bulk("Cu", "fcc", a=3.6, cubic=True), 3.6 / np.sqrt(2)),
        (bulk("Si", "diamond", a=5.43), 5.43 * np.sqrt(3) / 4),
        (Atoms("H", cell=[0.3, 9, 9], pbc=True), 0.3),  # a cell smaller than any gate
        (
            Atoms("H", cell=[[9, 0, 0], [8.9, 0.4, 0], [0, 0, 9]], pbc=True),
            np.hypot(0.1, 0.4),
        ),  # skewed: b - a is short
        (Atoms("H", cell=[0.3, 9, 9], pbc=[False, True, True]), 9.0),
        (Atoms("H2", positions=[[0, 0, 0], [8.9, 0, 0]], cell=[9, 9, 9], pbc=[True, False, False]), 0.1),
        (Atoms("H2", positions=[[0, 0, 0], [8.9, 0, 0]], cell=[9, 9, 9], pbc=False), 8.9),
        (Atoms("H2", positions=[[0, 0, 0], [0, 0, 0]]), 0.0),
        (Atoms("H2", positions=[[0, 0, 0], [27.5, 0, 0]], cell=[9, 9, 9], pbc=True), 0.5),  # not wrapped
    ],
)
def test_known_cells(atoms: Atoms, expected: float) -> None:
    assert closest_distances(Structures.from_ase([atoms]))[0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_wrapping_alone_misses_the_nearest_image(sign: int, axes: tuple[int, int, int]) -> None:
    """Fractional coordinates within ±1/2 of a reduced cell of 60°: the nearest image is one lattice vector further."""
    cell = np.array([[4, 0, 0], [2, 2 * np.sqrt(3), 0], [0, 0, 20.0]])
    atoms = Atoms("H2", positions=np.array([[0, 0, 0], [0.45, 0.45, 0]]) @ cell * sign, cell=cell[list(axes)], pbc=True)
    assert np.linalg.norm(atoms.positions[1]) > 3.1
    expected = np.linalg.norm(np.array([-0.55, 0.45, 0]) @ cell)
    assert by_ase(atoms, expected) == pytest.approx(expected)
    assert closest_distances(Structures.from_ase([atoms]))[0] == pytest.approx(expected, rel=1e-12)


def test_sizes_are_kept_apart() -> None:
    names = ["H2O", "C6H6", "CH4", "H2", "C6H6", "CH3CH2OH", "H"]
    images = [molecule(name) for name in names]
    images[3] = bulk("NaCl", "rocksalt", a=5.64)
    expected = [
        np.inf if len(a) == 1 else a.get_all_distances(mic=True)[np.triu_indices(len(a), 1)].min() for a in images
    ]
    np.testing.assert_allclose(closest_distances(Structures.from_ase(images)), expected, rtol=1e-12)


def test_many_atoms_take_several_blocks() -> None:
    rng = np.random.default_rng(1)
    positions = rng.uniform(0, 30, (700, 3))
    positions[650] = positions[3] + [0.01, 0, 0]
    atoms = Atoms(numbers=np.ones(700), positions=positions, cell=[30, 30, 30])
    for pbc in (False, True):
        atoms.pbc = pbc
        assert closest_distances(Structures.from_ase([atoms]))[0] == pytest.approx(0.01, rel=1e-9)


def test_reduced_cells_are_as_short_as_those_of_ase() -> None:
    rng = np.random.default_rng(2)
    cells = rng.normal(size=(150, 3, 3)) * 3
    cells[::3, 2] += cells[::3, 0] * 5 - cells[::3, 1] * 7
    reduced = reduce_cells(cells)
    for cell, found in zip(cells, reduced, strict=True):
        by_ase, _ = minkowski_reduce(cell, pbc=True)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.sort(np.linalg.norm(by_ase, axis=1)), rtol=1e-9)
        combination = found @ np.linalg.inv(cell)
        np.testing.assert_allclose(combination, np.rint(combination), atol=1e-6)  # the same lattice
        assert abs(abs(np.linalg.det(combination)) - 1) < 1e-6


def test_degenerate_cells() -> None:
    flat = np.array([[1.0, 0, 0], [0, 1, 0], [1, 1, 0]])
    cells = np.array([flat, flat, np.zeros((3, 3)), np.zeros((3, 3)), np.eye(3), flat])
    pbc = np.array([[1, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 1], [0, 0, 1]], bool)
    assert degenerate_cells(cells, pbc).tolist() == [True, False, False, True, False, False]
