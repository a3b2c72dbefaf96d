"""Splits: by group, by a hash that never changes, with every element in train."""

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.errors import RamifyError
from ramify.prepare.split import check_given_split, element_bits, element_numbers, group_hash, split_by_group
from ramify.structures import Split

TENTHS = {"val": 0.1, "test": 0.1}
HYDROGEN = element_bits(np.array(1))


def sets(*elements: list[int]) -> np.ndarray:
    """(S, 2) sets of elements."""
    return np.array([np.bitwise_or.reduce(element_bits(np.array(e)), axis=0) for e in elements], np.uint64)


def split(
    groups: list[str],
    fractions: Mapping[str, float] = MappingProxyType(TENTHS),
    seed: int = 0,
    elements: np.ndarray | None = None,
) -> tuple[np.ndarray, list[str]]:
    names = sorted(set(groups))
    index = np.array([names.index(g) for g in groups])
    held = np.tile(HYDROGEN, (len(groups), 1)) if elements is None else elements
    return split_by_group(index, names, held, fractions=fractions, seed=seed, dataset="d")


def test_the_hash_is_pinned() -> None:
    """Were it to change, the test split of every store made before would leak into training."""
    assert group_hash(0, "ani1x", "C2H6O") == HASH_ANI1X
    assert group_hash(1, "ani1x", "C2H6O") == HASH_SEED
    assert group_hash(0, "mptrj", "mp-1234") == HASH_MPTRJ


HASH_ANI1X = 0x830A3DBC4273C284
HASH_SEED = 0x60D3B7BCD73A119D
HASH_MPTRJ = 0xE2430B7B7B49A1F6


@settings(max_examples=50, deadline=None)
@given(
    groups=st.lists(st.text("abcdef", min_size=1, max_size=3), min_size=30, max_size=200),
    val=st.floats(0.01, 0.45),
    test=st.floats(0.01, 0.45),
    seed=st.integers(0, 10),
)
def test_groups_never_part_and_order_does_not_matter(groups: list[str], val: float, test: float, seed: int) -> None:
    distinct = len(set(groups))
    fractions = {"val": val, "test": test}
    wanted = {s: max(1, round(f * distinct)) for s, f in fractions.items()}
    if sum(wanted.values()) >= distinct:
        with pytest.raises(RamifyError, match="groups never part"):
            split(groups, fractions, seed)
        return
    found, moved = split(groups, fractions, seed)
    of_group = dict(zip(groups, found.tolist(), strict=True))
    assert [of_group[g] for g in groups] == found.tolist()
    assert not moved
    counts = np.bincount(list(of_group.values()), minlength=4)
    assert counts[Split.VAL] == wanted["val"]
    assert counts[Split.TEST] == wanted["test"]
    order = np.random.default_rng(seed).permutation(len(groups))
    again, _ = split([groups[i] for i in order], fractions, seed)
    assert again.tolist() == found[order].tolist()


def test_other_groups_only_move_the_borders() -> None:
    """Order by hash is kept: of groups common to two datasets, test is a head and test + val a longer head of it."""
    few, many = [f"g{i}" for i in range(50)], [f"g{i}" for i in range(400)]
    for groups in (few, many):
        found, _ = split(groups)
        ordered = sorted(groups, key=lambda g: group_hash(0, "d", g))
        by_name = dict(zip(groups, found.tolist(), strict=True))
        rank = {Split.TEST: 0, Split.VAL: 1, Split.TRAIN: 2}
        ranks = [rank[Split(by_name[g])] for g in ordered]
        assert ranks == sorted(ranks)
        assert ranks.count(0) == ranks.count(1) == len(groups) // 10


def test_seed_and_dataset_enter() -> None:
    groups = [f"g{i}" for i in range(100)]
    a, _ = split(groups)
    b, _ = split(groups, seed=1)
    index = np.arange(100)
    held = np.tile(HYDROGEN, (100, 1))
    c, _ = split_by_group(index, groups, held, fractions=TENTHS, seed=0, dataset="other")
    assert (a != b).any()
    assert (a != c).any()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_train_holds_every_element(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = [f"g{i}" for i in range(60)]
    held = [rng.choice(np.arange(1, 119), rng.integers(1, 4)).tolist() for _ in groups]
    found, moved = split(groups, elements=sets(*held))
    train = {z for s, row in zip(found, held, strict=True) if s == Split.TRAIN for z in row}
    assert train == {z for row in held for z in row}
    for name in moved:
        assert found[groups.index(name)] == Split.TRAIN
    assert moved == sorted(moved)
    # others take the places of what has moved, as long as there are any that training can do without
    holders = Counter(z for s, row in zip(found, held, strict=True) if s == Split.TRAIN for z in set(row))
    spare = [s == Split.TRAIN and all(holders[z] > 1 for z in row) for s, row in zip(found, held, strict=True)]
    assert np.bincount(found, minlength=4)[[Split.VAL, Split.TEST]].tolist() == [6, 6] or not any(spare)


def test_groups_with_rare_elements_are_listed() -> None:
    groups = [f"g{i}" for i in range(20)]
    first, second = sorted(groups, key=lambda g: group_hash(0, "d", g))[:2]
    held = sets(*[[1, 92] if g == first else [1] for g in groups])
    found, moved = split(groups, elements=held)
    assert moved == [first]
    assert found[groups.index(second)] == Split.TEST


def test_no_group_left_to_take() -> None:
    held = sets([1], [2], [3], [4])
    with pytest.raises(RamifyError, match=r"the split\(s\) val, test are empty.*4 group\(s\) went to train"):
        split(["a", "b", "c", "d"], elements=held)


@pytest.mark.parametrize(
    "fractions", [{"val": 0.1}, {"val": 0.0, "test": 0.1}, {"val": 0.5, "test": 0.5}, {"val": -0.1, "test": 0.2}]
)
def test_impossible_fractions(fractions: dict[str, float]) -> None:
    with pytest.raises(RamifyError, match=r"datasets\.d\.split is .* must both be above 0"):
        split([f"g{i}" for i in range(20)], fractions)


@pytest.mark.parametrize("groups", [["a"] * 9, ["a", "b"] * 5])
def test_too_few_groups(groups: list[str]) -> None:
    with pytest.raises(RamifyError, match=r"group\(s\) cannot be split"):
        split(groups)


def test_element_sets() -> None:
    for elements in ([1], [63, 64, 65], [118], [1, 6, 7, 8, 92]):
        assert element_numbers(sets(elements)[0]) == elements


def given_split(values: list[int], *elements: list[int]) -> None:
    check_given_split(np.array(values, np.uint8), sets(*elements), dataset="d", name=lambda row: f"file[{row}]")


def test_a_given_split_is_accepted() -> None:
    given_split([1, 2, 3, 1], [1, 8], [8], [1], [8])


def test_a_given_split_with_unseen_elements_names_them() -> None:
    message = r"hold F, U, which no training structure does, in 2 .*e\.g\. file\[1\], file\[3\]"
    with pytest.raises(RamifyError, match=message):
        given_split([1, 2, 3, 3], [1, 8], [8, 92], [1], [9, 1])


def test_a_given_split_with_an_empty_part() -> None:
    with pytest.raises(RamifyError, match=r"the split\(s\) test are empty \(train 2, val 1, test 0\)"):
        given_split([1, 1, 2], [1], [1], [1])


def test_a_split_for_some_structures_only() -> None:
    with pytest.raises(RamifyError, match=r"2 of 4 structures are in no split.*file\[1\], file\[2\]"):
        given_split([1, 0, 0, 3], [1], [1], [1], [1])
