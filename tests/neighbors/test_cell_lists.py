"""Both libraries of cell lists find the same pairs, also in cells that are skewed or far smaller than the radius."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import pytest
from ase.build import bulk
from ase.neighborlist import neighbor_list

from ramify.neighbors import cell_lists
from ramify.neighbors.cell_lists import Found, by_nvalchemi, by_vesin, cell_list_for
from ramify.neighbors.edges import find_pairs
from ramify.structures import Structures
from tests.neighbors.test_neighbors import as_set, random_atoms

RADIUS = 4.3


@pytest.fixture
def nvalchemi() -> None:
    """The library on a CPU, where its kernels are the same."""
    pytest.importorskip("nvalchemiops", reason="needs the package nvalchemi-toolkit-ops")


def pairs_of(found: Found) -> set[tuple[int, ...]]:
    inside = found[3] < RADIUS
    pairs = as_set(*(column[inside] for column in found[:3]))
    assert len(pairs) == inside.sum()
    return pairs


@pytest.mark.usefixtures("nvalchemi")
def test_the_same_pairs() -> None:
    for seed in range(200):
        atoms = random_atoms(seed)
        given = atoms.positions, np.asarray(atoms.cell), atoms.pbc, RADIUS
        expected = pairs_of(by_vesin(*given))
        assert pairs_of(by_nvalchemi(*given, device="cpu")) == expected
        assert expected == as_set(*neighbor_list("ijS", atoms, RADIUS))


@pytest.mark.usefixtures("nvalchemi")
@pytest.mark.parametrize("pbc", [(True, True, False), (False, False, True), (False, False, False)])
def test_axes_without_length(pbc: tuple[bool, bool, bool]) -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True).repeat((2, 3, 4))
    atoms.rattle(0.2, seed=0)
    cell = np.asarray(atoms.cell) * np.array(pbc)[:, None]
    found = by_nvalchemi(atoms.positions, cell, np.array(pbc), RADIUS, device="cpu")
    order, other = (np.sort(one[3]) for one in (found, by_vesin(atoms.positions, cell, np.array(pbc), RADIUS)))
    np.testing.assert_allclose(order, other, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("nvalchemi")
def test_more_neighbours_than_there_was_room_for() -> None:
    squeezed = bulk("Cu", cubic=True).repeat(3)
    squeezed.set_cell(squeezed.cell * 0.5, scale_atoms=True)
    given = squeezed.positions, np.asarray(squeezed.cell), squeezed.pbc, RADIUS
    found = pairs_of(by_vesin(*given))
    assert len(found) > 2 * cell_lists.NEIGHBORS * len(squeezed)
    assert pairs_of(by_nvalchemi(*given, device="cpu")) == found


def test_which_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """nvalchemi for large structures on CUDA where it is installed, vesin otherwise."""
    assert cell_list_for("cpu") is by_vesin
    there = ModuleType("nvalchemiops")
    there.__spec__ = ModuleSpec("nvalchemiops", None)
    monkeypatch.setitem(sys.modules, "nvalchemiops", there)
    assert cell_list_for("cuda") is by_nvalchemi
    assert cell_list_for("xpu") is by_vesin
    monkeypatch.setitem(sys.modules, "nvalchemiops", None)  # what Python takes for not installed
    assert cell_list_for("cuda") is by_vesin


def test_large_structures_are_searched_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("ramify.neighbors.edges.cell_list_for", lambda device: asked.append(device) or by_vesin)
    large, small = bulk("Cu", cubic=True).repeat(8), bulk("Cu")
    find_pairs(Structures.from_ase([small, large]), RADIUS, device="cuda")
    assert asked == ["cuda"]
