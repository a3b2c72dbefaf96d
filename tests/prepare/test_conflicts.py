"""Copies of a geometry: which agree in their labels, and which of those that do not stay."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.prepare.checks.conflicts import ENERGY, FORCES, Rule, judge, label_differences
from ramify.structures import Structures


def labelled(energies: list[float], forces: list[float]) -> Structures:
    """Copies of one structure of two atoms; energies in eV/atom, one force component in eV/Å."""
    n = len(energies)
    vectors = np.zeros((2 * n, 3))
    vectors[::2, 1] = forces
    return Structures.make(
        n_atoms=[2] * n,
        numbers=[7] * (2 * n),
        positions=np.zeros((2 * n, 3)),
        energy=2 * np.array(energies),
        forces=vectors,
    )


def verdict(
    structures: Structures, earlier: list[int], rule: Rule, labels: list[int] | None = None
) -> tuple[list[int], list[int]]:
    found = judge(
        np.array(earlier),
        structures.energy / structures.n_atoms,
        np.ones(len(structures), np.int8),
        partial(label_differences, partial(getattr, structures), structures.offsets),
        rule,
    )
    return found.copy_of.tolist(), found.conflict_with.tolist()


def test_differences_of_labels() -> None:
    some = labelled([1.0, 1.5, 1.0, 1.0], [0.0, 0.2, np.nan, -0.3])
    energy, forces = label_differences(partial(getattr, some), some.offsets, np.array([1, 2, 3]), np.array([0, 0, 1]))
    assert energy.tolist() == [0.5, 0.0, 0.5]
    assert forces == pytest.approx([0.2, np.nan, 0.5], nan_ok=True)


def test_three_rules() -> None:
    """Two labels that occur twice each, the higher one first, and a single structure."""
    some = labelled([2.0, 5.0, 1.0, 2.0, 1.0], [0.1, 0.0, 0.2, 0.1, 0.2])
    earlier = [-1, -1, 0, 0, 0]
    assert verdict(some, earlier, "lowest") == ([-1, -1, -1, -1, 2], [2, -1, -1, 2, -1])
    assert verdict(some, earlier, "keep") == ([-1, -1, -1, 0, 2], [-1] * 5)
    assert verdict(some, earlier, "drop") == ([-1] * 5, [2, -1, 2, 2, 2])


@pytest.mark.parametrize(("energy", "force", "same"), [(0.9, 0.9, True), (1.1, 0.0, False), (0.0, 1.1, False)])
def test_what_counts_as_the_same_label(energy: float, force: float, same: bool) -> None:
    some = labelled([0.0, energy * ENERGY], [0.0, force * FORCES])
    assert verdict(some, [-1, 0], "lowest") == (([-1, 0], [-1, -1]) if same else ([-1, -1], [-1, 0]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=25))
def test_agrees_with_a_count_by_hand(rows: list[tuple[int, int, int]]) -> None:
    """Geometry, energy and force each one of a few values far apart: labels agree exactly or not at all."""
    geometry, level, force = (np.array(column) for column in zip(*rows, strict=True))
    some = labelled((0.1 * level).tolist(), (1.0 * force).tolist())
    first = {int(g): int(np.flatnonzero(geometry == g)[0]) for g in geometry}
    earlier = [-1 if first[int(g)] == k else first[int(g)] for k, g in enumerate(geometry)]
    for rule in ("lowest", "keep", "drop"):
        copy_of, conflict_with = map(np.array, verdict(some, earlier, rule))
        for g in set(geometry.tolist()):
            members = np.flatnonzero(geometry == g)
            kinds = {(int(level[m]), int(force[m])) for m in members}
            kept = [m for m in members if copy_of[m] < 0 and conflict_with[m] < 0]
            if len(kinds) == 1 or rule == "lowest":
                assert len(kept) == 1
                assert level[kept[0]] == level[members].min()
            else:
                assert len(kept) == (len(kinds) if rule == "keep" else 0)
            for m in members[copy_of[members] >= 0]:
                assert (level[m], force[m]) == (level[copy_of[m]], force[copy_of[m]])
                assert copy_of[m] in kept
