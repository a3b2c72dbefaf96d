"""Neighbours used again are those that a fresh search finds, however atoms and cells move."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.inference.skin import SkinNeighbors
from ramify.neighbors.edges import Edges, find_edges
from ramify.structures import Structures

CUTOFF, MAX_NEIGHBORS = 4.0, 12


def assert_equal(found: Edges, expected: Edges) -> None:
    """The same edges; the order of equally distant ones is free, and reaches agree to rounding."""
    for a, b in ((found, expected), (found.cutoff_pairs, expected.cutoff_pairs)):
        rows = [np.column_stack([e.receiver, e.sender, e.shift]) for e in (a, b)]
        orders = [np.lexsort(r.T) for r in rows]
        np.testing.assert_array_equal(rows[0][orders[0]], rows[1][orders[1]])
    np.testing.assert_allclose(found.atom_cutoff, expected.atom_cutoff, atol=1e-10)
    order = [
        np.lexsort(np.column_stack([e.cutoff_pairs.receiver, e.cutoff_pairs.sender, e.cutoff_pairs.shift]).T)
        for e in (found, expected)
    ]
    np.testing.assert_allclose(found.cutoff_pairs.gain[order[0]], expected.cutoff_pairs.gain[order[1]], atol=1e-8)


def systems() -> dict[str, list[Atoms]]:
    """One structure or several, of every kind of periodicity."""
    slab = bulk("Cu", cubic=True).repeat((2, 2, 1))
    slab.pbc = (True, True, False)
    slab.cell[2, 2] = 12.0
    boxed = molecule("C6H6")
    boxed.set_cell([8.0, 8.0, 8.0])
    skewed = bulk("Si")
    return {
        "molecule": [molecule("CH3CH2OH")],
        "crystal": [skewed],
        "slab": [slab],
        "several": [molecule("H2O"), skewed, boxed, slab, Atoms("He")],
    }


@settings(deadline=None, max_examples=25)
@given(
    name=st.sampled_from(sorted(systems())),
    skin=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**32 - 1),
    size=st.floats(0.0, 0.2),
    strain=st.floats(0.0, 0.02),
)
def test_equal_to_a_fresh_search_on_any_path(name: str, skin: float, seed: int, size: float, strain: float) -> None:
    """Ten steps of random displacements, drifts and strains."""
    rng = np.random.default_rng(seed)
    images = [atoms.copy() for atoms in systems()[name]]
    neighbors = SkinNeighbors(CUTOFF, MAX_NEIGHBORS, skin)
    for _ in range(10):
        for atoms in images:
            atoms.positions += rng.normal(0, size / 3, atoms.positions.shape) + rng.normal(0, size, 3)
            if strain and atoms.pbc.any() and rng.random() < 0.5:
                atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, strain, (3, 3))), scale_atoms=True)
        structures = Structures.from_ase(images)
        found, closest = neighbors.find(structures)
        assert_equal(found, find_edges(structures, CUTOFF, MAX_NEIGHBORS))
        for k, atoms in enumerate(images):
            if not atoms.pbc.any() and len(atoms) > 1:
                distances = atoms.get_all_distances()[np.triu_indices(len(atoms), 1)]
                assert closest[k] == pytest.approx(distances.min(), abs=1e-12)


def test_small_moves_need_no_search() -> None:
    atoms = bulk("Cu", cubic=True)
    neighbors = SkinNeighbors(CUTOFF, MAX_NEIGHBORS, 0.4)
    for _ in range(10):
        atoms.positions[0] += 0.01  # 0.17 Å in all, 0.13 Å against the mean
        atoms.positions += 5.0  # the whole crystal moves: nobody's neighbours change
        neighbors.find(Structures.from_ase([atoms]))
    assert neighbors.searches == 1
    atoms.set_cell(atoms.cell.array * 1.01, scale_atoms=True)  # an even strain leaves room in the skin
    neighbors.find(Structures.from_ase([atoms]))
    assert neighbors.searches == 1


@pytest.mark.parametrize("change", ["far", "element", "count", "pbc", "compressed", "wrapped"])
def test_what_needs_a_search(change: str) -> None:
    atoms = bulk("Cu", cubic=True)
    neighbors = SkinNeighbors(CUTOFF, MAX_NEIGHBORS, 0.4)
    neighbors.find(Structures.from_ase([atoms]))
    if change == "far":
        atoms.positions[0] += 0.3
    elif change == "element":
        atoms.numbers[0] = 13
    elif change == "count":
        atoms += Atoms("Cu", [[1.8, 1.8, 1.8]])
    elif change == "pbc":
        atoms.pbc[0] = False
    elif change == "compressed":
        atoms.set_cell(atoms.cell.array * 0.8, scale_atoms=True)
    else:
        atoms.positions[0] += atoms.cell[0]  # the same crystal, yet its pairs have other lattice steps
    found, _ = neighbors.find(Structures.from_ase([atoms]))
    assert neighbors.searches == 2
    assert_equal(found, find_edges(Structures.from_ase([atoms]), CUTOFF, MAX_NEIGHBORS))
