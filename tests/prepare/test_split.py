"""Splits: by group, by block or by structure, by a hash that never changes, with every element in train."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ramify.errors import RamifyError
from ramify.prepare.split import Divided, ToSplit, divide, element_bits, element_numbers, group_hash
from ramify.sources.base import SplitOptions
from ramify.structures import Split

HYDROGEN = element_bits(np.array(1))


def sets(*elements: list[int]) -> np.ndarray:
    """(S, 2) sets of elements."""
    return np.array([np.bitwise_or.reduce(element_bits(np.array(e)), axis=0) for e in elements], np.uint64)


def divided(
    groups: list[str],
    seed: int = 0,
    elements: np.ndarray | None = None,
    origins: list[str] | None = None,
    given: list[int] | None = None,
    dataset: str = "d",
    **options: Any,
) -> Divided:
    names, files = sorted(set(groups)), origins or ["file"] * len(groups)
    tables = sorted(set(files))
    row = [files[:k].count(file) for k, file in enumerate(files)]
    structures = ToSplit(
        dataset=dataset,
        group=np.array([names.index(g) for g in groups]),
        origin=np.array([tables.index(file) for file in files]),
        row=np.array(row),
        groups=names,
        origins=tables,
        elements=np.tile(HYDROGEN, (len(groups), 1)) if elements is None else elements,
        given=np.zeros(len(groups), np.uint8) if given is None else np.array(given, np.uint8),
    )
    return divide(structures, SplitOptions.model_validate(options), seed)


def split(groups: list[str], **keys: Any) -> tuple[np.ndarray, list[str]]:
    found = divided(groups, **keys)
    return found.split, found.moved


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
    """Fractions are of structures, as near as whole groups allow."""
    assume(len(set(groups)) > 2)
    found, moved = split(groups, val=val, test=test, seed=seed)
    of_group = dict(zip(groups, found.tolist(), strict=True))
    assert [of_group[g] for g in groups] == found.tolist()
    assert not moved
    sizes = Counter(groups)
    counts = np.bincount(found, minlength=4)
    assert counts[1:].all()
    for part, fraction in ((Split.TEST, test), (Split.VAL, val)):
        wanted = max(1, round(fraction * len(groups)))
        inside = [sizes[g] for g, s in of_group.items() if s == part]
        assert counts[part] <= wanted + max(inside) / 2 or len(inside) == 1
        left = [sizes[g] for g, s in of_group.items() if s == Split.TRAIN]
        assert counts[part] + min(left) / 2 >= wanted or len(left) <= 2
    order = np.random.default_rng(seed).permutation(len(groups))
    again, _ = split([groups[i] for i in order], val=val, test=test, seed=seed)
    assert again.tolist() == found[order].tolist()


def test_fractions_are_of_structures() -> None:
    """One group of half the structures, which the first of the hash would have put into test, trains."""
    small = [f"g{i}" for i in range(100)]
    large = next(name for name in map(str, range(10_000)) if all(hashed(name) < hashed(g) for g in small))
    found, _ = split([large] * 100 + small)
    assert (found[:100] == Split.TRAIN).all()
    assert np.bincount(found, minlength=4)[1:].tolist() == [160, 20, 20]


def hashed(group: str) -> int:
    return group_hash(0, "d", group)


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
    c, _ = split(groups, dataset="other")
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
    ("fractions", "said"),
    [
        ({"val": 0.5, "test": 0.5}, "val 0.5 and test 0.5"),
        ({"val": -0.1}, "greater than or equal"),
        ({"test": 1.0}, "less"),
    ],
)
def test_impossible_fractions(fractions: dict[str, float], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        split([f"g{i}" for i in range(20)], **fractions)


@pytest.mark.parametrize("by", ["group", "block", "structure"])
def test_train_on_everything(by: str) -> None:
    for groups in (["a"] * 9, [f"g{i}" for i in range(9)]):
        found = divided(groups, by=by, val=0, test=0)
        assert (found.split == Split.TRAIN).all()
        assert found.findings == []


@pytest.mark.parametrize(("val", "test"), [(0.2, 0.0), (0.0, 0.2)])
def test_one_split_is_done_without(val: float, test: float) -> None:
    found, _ = split([f"g{i}" for i in range(10)], val=val, test=test)
    assert np.bincount(found, minlength=4)[1:].tolist() == [8, round(10 * val), round(10 * test)]
    split(["a", "b"], val=val, test=test)  # two groups are enough for two splits


@pytest.mark.parametrize("groups", [["a"] * 9, ["a", "b"] * 5])
def test_too_few_groups(groups: list[str]) -> None:
    with pytest.raises(RamifyError, match=r"group\(s\) cannot be split") as caught:
        split(groups)
    assert "by: block" in str(caught.value)


def test_one_trajectory_in_blocks() -> None:
    found, _ = split(["a"] * 100, by="block", val=0.2, test=0.1)
    assert found.tolist() == [Split.TRAIN] * 70 + [Split.VAL] * 20 + [Split.TEST] * 10


def test_trajectories_of_one_group_in_several_files_are_cut_each() -> None:
    """In any order of the frames of several trajectories."""
    origins = ["a.xyz", "b.xyz"] * 50
    found, _ = split(["C5H8O2"] * 100, origins=origins, by="block")
    for file in range(2):
        assert found[file::2].tolist() == [Split.TRAIN] * 40 + [Split.VAL] * 5 + [Split.TEST] * 5


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=15, max_size=30),
    val=st.sampled_from([0.0, 0.1, 0.37]),
    test=st.sampled_from([0.0, 0.08, 0.3]),
    seed=st.integers(0, 5),
)
def test_blocks_of_many_trajectories(sizes: list[int], val: float, test: float, seed: int) -> None:
    """All in the order train, val, test; the fractions hold over all, except for trajectories too short to divide."""
    assume(sum(sizes) > 100)
    groups = [f"g{i}" for i, size in enumerate(sizes) for _ in range(size)]
    found, _ = split(groups, by="block", val=val, test=test, seed=seed)
    position = {Split.TRAIN: 0, Split.VAL: 1, Split.TEST: 2}
    for name in set(groups):
        inside = [position[Split(s)] for g, s in zip(groups, found.tolist(), strict=True) if g == name]
        assert inside == sorted(inside)
        assert inside[0] == 0
    if min(sizes) * (1 - val - test) >= 3:
        for part, fraction in ((Split.VAL, val), (Split.TEST, test)):
            wanted = max(1, round(fraction * len(groups))) if fraction else 0
            assert abs(int((found == part).sum()) - wanted) <= 1


def test_by_structure() -> None:
    """Exact fractions, independent of the order of files, with a warning."""
    groups = ["a"] * 150 + ["b"] * 50
    origins = ["x"] * 100 + ["y"] * 100
    found = divided(groups, origins=origins, by="structure", val=0.1, test=0.2)
    assert np.bincount(found.split, minlength=4)[1:].tolist() == [140, 20, 40]
    assert "near-duplicates" in found.findings[0].text
    parts = [found.split[:100], found.split[100:]]
    again = divided(
        groups[100:] + groups[:100], origins=origins[100:] + origins[:100], by="structure", val=0.1, test=0.2
    )
    assert again.split.tolist() == [*parts[1].tolist(), *parts[0].tolist()]


@pytest.mark.parametrize("by", ["block", "structure"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_train_holds_every_element_of_single_structures(by: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    held = [rng.choice(np.arange(1, 20), rng.integers(1, 4)).tolist() for _ in range(60)]
    found, _ = split(["a"] * 60, elements=sets(*held), by=by, val=0.2, test=0.2)
    train = {z for s, row in zip(found, held, strict=True) if s == Split.TRAIN for z in row}
    assert train == {z for row in held for z in row}


def test_a_split_that_groups_keep_from_its_fraction_is_said_to_be() -> None:
    found = divided(["a"] * 60 + ["b"] * 20 + ["c"] * 20)
    assert np.bincount(found.split, minlength=4)[1:].tolist() == [60, 20, 20]
    assert "20 structures instead of 10" in found.findings[0].text
    assert divided([f"g{i}" for i in range(100)]).findings == []


def test_element_sets() -> None:
    for elements in ([1], [63, 64, 65], [118], [1, 6, 7, 8, 92]):
        assert element_numbers(sets(elements)[0]) == elements


def given_split(values: list[int], *elements: list[int], **options: Any) -> Divided:
    return divided([f"g{i}" for i in range(len(values))], elements=sets(*elements), given=values, **options)


def test_a_given_split_is_accepted() -> None:
    found = given_split([1, 2, 3, 1], [1, 8], [8], [1], [8])
    assert found.split.tolist() == [1, 2, 3, 1]
    assert found.findings == []


def test_a_given_split_with_unseen_elements_names_them() -> None:
    message = r"hold F, U, which no training structure does, in 2 .*e\.g\. file\[1\], file\[3\]"
    with pytest.raises(RamifyError, match=message):
        given_split([1, 2, 3, 3], [1, 8], [8, 92], [1], [9, 1])


def test_validation_and_test_are_taken_out_of_given_training_files() -> None:
    """Given splits stay unchanged."""
    elements = [[1]] * 60
    for brought, carved in ((Split.TEST, Split.VAL), (Split.VAL, Split.TEST)):
        given = [1] * 50 + [int(brought)] * 10
        found = given_split(given, *elements)
        assert (found.split[50:] == brought).all()
        assert (found.split[:50] == carved).sum() == 5
        assert (found.split[:50] == Split.TRAIN).sum() == 45
        assert f"no {carved.name.lower()} split" in found.findings[0].text
        without = given_split(given, *elements, **{carved.name.lower(): 0})
        assert without.split.tolist() == given
    found = given_split([1] * 60, *elements)
    assert np.bincount(found.split, minlength=4)[1:].tolist() == [48, 6, 6]
    with pytest.raises(RamifyError, match=r"the split\(s\) train are empty \(train 0, val 1, test 1\)"):
        given_split([2, 3], [1], [1])


def test_a_split_for_some_structures_only() -> None:
    with pytest.raises(RamifyError, match=r"2 of 4 structures are in no split.*file\[1\], file\[2\]"):
        given_split([1, 0, 0, 3], [1], [1], [1], [1])
