"""Duplicates and the fingerprints they are found by."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from ase.build import bulk, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.prepare.checks.duplicates import TOLERANCE, earlier_equals, equal_structures
from ramify.prepare.checks.fingerprints import fingerprints, geometry_weights, projection_reach
from ramify.structures import Structures


def earlier(structures: Structures) -> list[int]:
    prints = fingerprints(structures)
    equal = partial(equal_structures, partial(getattr, structures), structures.offsets)
    return earlier_equals(prints.sequence, prints.projection, structures.n_atoms, equal).tolist()


def by_hand(structures: Structures) -> list[int]:
    """Every structure compared with all earlier ones that are kept."""
    found: list[int] = []
    for j in range(len(structures)):
        kept = [i for i in range(j) if found[i] < 0]
        rows = np.array(kept, np.int64)
        same = equal_structures(
            partial(getattr, structures), structures.offsets, rows, np.full(len(rows), j), TOLERANCE
        )
        found.append(kept[int(np.argmax(same))] if same.any() else -1)
    return found


def molecules(n: int, atoms: int, rng: np.random.Generator) -> Structures:
    return Structures.make(
        n_atoms=[atoms] * n, numbers=rng.integers(1, 3, n * atoms), positions=rng.normal(size=(n * atoms, 3)) * 3
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), atoms=st.integers(1, 40), size=st.sampled_from([0.0, 1e-9, 1e-6, 5e-5, 9.9e-5]))
def test_copies_are_found_under_any_noise_below_the_tolerance(seed: int, atoms: int, size: float) -> None:
    """Half the noise goes to every coordinate, at random signs: where a grid would be crossed everywhere."""
    rng = np.random.default_rng(seed)
    first = molecules(20, atoms, rng)
    order = rng.permutation(20)
    copies = first.take(order)
    moved = replace(copies, positions=copies.positions + rng.choice([-size, size], copies.positions.shape))
    found = earlier(Structures.concatenate([first, moved]))
    assert found[:20] == [-1] * 20
    assert found[20:] == order.tolist()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_agrees_with_comparing_everything(seed: int) -> None:
    """Noise around the tolerance: some copies count, some do not; each is compared with kept ones only."""
    rng = np.random.default_rng(seed)
    base = molecules(4, int(rng.integers(1, 5)), rng)
    many = base.take(rng.integers(0, 4, 60))
    noise = rng.normal(size=many.positions.shape) * TOLERANCE * 0.4
    structures = replace(many, positions=many.positions + noise)
    assert earlier(structures) == by_hand(structures)


def test_a_drift_is_not_one_long_repetition() -> None:
    """Steps of 0.4 tolerances: the third frame after the last one kept is too far from it."""
    base = molecules(1, 6, np.random.default_rng(0)).take(np.zeros(30, np.int64))
    steps = np.repeat(np.arange(30), 6)[:, None] * np.array([0.4 * TOLERANCE, 0, 0])
    found = earlier(replace(base, positions=base.positions + steps))
    assert found == [-1 if k % 3 == 0 else k - k % 3 for k in range(30)]


def test_many_exact_copies_are_quick() -> None:
    base = molecules(2, 5, np.random.default_rng(0))
    structures = base.take(np.arange(20_000) % 2)
    found = earlier(structures)
    assert found == [-1, -1, *([0, 1] * 9999)]


def test_exact_copies_of_a_dropped_copy_point_to_the_kept_one() -> None:
    base = molecules(1, 5, np.random.default_rng(0))
    near = replace(base, positions=base.positions + 3e-5)
    assert earlier(Structures.concatenate([base, near, near, base, near])) == [-1, 0, 0, 0, 0]


def test_what_makes_structures_different() -> None:
    water = molecule("H2O")
    other_element, other_order, moved = water.copy(), water[[1, 0, 2]], water.copy()
    other_element.numbers[0] = 16
    moved.positions[2, 1] += 2e-4
    assert earlier(Structures.from_ase([water, other_element, other_order, moved, water])) == [-1, -1, -1, -1, 0]


def test_likely_pairs_are_compared_atom_by_atom() -> None:
    """If hashes and projections coincide by chance, the comparison still distinguishes elements and single atoms."""
    ethane = molecule("C2H6")
    other_element, middle, last = (ethane.copy() for _ in range(3))
    other_element.numbers[4] = 9
    middle.positions[3] += 0.01
    last.positions[7] += 0.01
    structures = Structures.from_ase([ethane, other_element, middle, last, ethane, molecule("H2O")])
    same = equal_structures(
        partial(getattr, structures), structures.offsets, np.zeros(6, np.int64), np.arange(6), TOLERANCE
    )
    assert same.tolist() == [True, False, False, False, True, False]


def test_cells_count_where_they_are_periodic() -> None:
    crystal = bulk("NaCl", "rocksalt", a=5.64)
    strained, noisy, slab, dummy, other_dummy = (crystal.copy() for _ in range(5))
    strained.cell[0, 1] += 2e-4
    noisy.cell[0, 1] += 2e-5
    slab.pbc = [True, True, False]
    dummy.pbc = other_dummy.pbc = False
    other_dummy.cell[:] = np.eye(3)
    images = [crystal, strained, noisy, slab, dummy, other_dummy]
    assert earlier(Structures.from_ase(images)) == [-1, -1, 0, -1, -1, 4]


def test_hashes_are_the_same_on_every_machine() -> None:
    """Pinned: stores are compared over time, and the hash must not depend on numpy's version or the machine."""
    prints = fingerprints(Structures.from_ase([molecule("H2O"), bulk("Cu", "fcc", a=3.6)]))
    assert prints.composition.tolist() == PINNED_COMPOSITION
    assert prints.sequence.tolist() == PINNED_SEQUENCE
    np.testing.assert_allclose(prints.projection, PINNED_PROJECTION, rtol=1e-12)


PINNED_COMPOSITION = [2005990131671783083, 17172820739197057138]
PINNED_SEQUENCE = [16731209992693302613, 18103442436155191023]
PINNED_PROJECTION = [[0.7360639411369303, 0.7600264423342971], [0.6137042684742925, -5.807371415432816]]


def test_composition_ignores_order_and_sequence_does_not() -> None:
    rng = np.random.default_rng(0)
    ethanol = molecule("CH3CH2OH")
    images = [ethanol[rng.permutation(len(ethanol))] for _ in range(20)]
    prints = fingerprints(Structures.from_ase([*images, molecule("CH3OCH3")]))
    assert len(set(prints.composition.tolist())) == 1
    assert len(set(prints.sequence.tolist())) == len({tuple(a.numbers) for a in [*images, molecule("CH3OCH3")]})


def test_compositions_do_not_collide() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.integers(1, 119, (20_000, 4))
    structures = Structures.make(n_atoms=[4] * 20_000, numbers=numbers.reshape(-1), positions=np.zeros((80_000, 3)))
    different = len(np.unique(np.sort(numbers, axis=1), axis=0))
    assert len(np.unique(fingerprints(structures).composition)) == different


@pytest.mark.parametrize("atoms", [1, 7, 100])
def test_reach_bounds_what_noise_does(atoms: int) -> None:
    structures = molecules(1, atoms, np.random.default_rng(0))
    worst = np.sign(geometry_weights(atoms + 3)[0, 3:])
    moved = replace(structures, positions=structures.positions + worst)
    change = fingerprints(moved).projection - fingerprints(structures).projection
    reach = projection_reach(structures.n_atoms)[0]
    assert 0.9 * reach * atoms / (atoms + 3) < change[0, 0] <= reach  # the reach also covers nine numbers of the cell
