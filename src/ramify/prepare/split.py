"""Training, validation and test split: by group, never by structure, so that near copies never stand on both sides."""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ramify.elements import SYMBOLS
from ramify.errors import RamifyError
from ramify.store.manifest import SPLITS
from ramify.structures import Split

Elements = NDArray[np.uint64]
"""(..., 2) sets of elements as bits: bit z % 64 of word z // 64."""

EXAMPLES = 3
"""Structures that an error names."""


def element_bits(numbers: NDArray[np.integer]) -> Elements:
    """(..., 2) one-element sets of atomic numbers (...,)."""
    z = numbers.astype(np.uint64)
    bit = np.uint64(1) << (z % np.uint64(64))
    return np.stack([np.where(z < 64, bit, 0), np.where(z >= 64, bit, 0)], axis=-1).astype(np.uint64)


def element_numbers(bits: Elements) -> list[int]:
    """Atomic numbers in one set (2,)."""
    return [z for z in range(len(SYMBOLS)) if int(bits[z // 64]) >> (z % 64) & 1]


def group_hash(seed: int, dataset: str, group: str) -> int:
    """What orders the groups: the same on every machine and in every version, whatever other groups there are."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{dataset}:{group}".encode(), digest_size=8).digest(), "big")


def split_by_group(
    group: NDArray[np.integer],
    names: Sequence[str],
    elements: Elements,
    *,
    fractions: Mapping[str, float],
    seed: int,
    dataset: str,
) -> tuple[NDArray[np.uint8], list[str]]:
    """Splits S structures by their groups.

    Groups are sorted by `group_hash`; the first `fractions["test"]` of them are the test split, the next
    `fractions["val"]` the validation split (rounded, at least one each), all others train. A group whose elements would
    then be absent from train goes to train instead, and the next in line takes its place.

    Args:
        group: (S,) index into `names`.
        names: names of the groups; those without a structure do not count.
        elements: (S, 2) set of elements of each structure, see `element_bits`.
        fractions: parts of the groups that `val` and `test` get.
        seed, dataset: enter the hash.

    Returns:
        the split of each structure, and the names of the groups that went to train instead, sorted.

    Raises:
        RamifyError: impossible fractions, too few groups, or a split left empty.
    """
    _check_fractions(fractions, dataset)
    present, of_structure = np.unique(group, return_inverse=True)
    order = sorted(range(len(present)), key=lambda g: (group_hash(seed, dataset, names[present[g]]), names[present[g]]))
    n_test, n_val = (max(1, round(fractions[s] * len(present))) for s in ("test", "val"))
    if n_test + n_val >= len(present):
        raise RamifyError(
            f"dataset '{dataset}': {len(present)} group(s) cannot be split into train, {n_val} for val and {n_test} "
            "for test; groups never part",
            fix="bring more groups, or state files by split: `path: {train: ..., val: ..., test: ...}`",
        )
    held = np.zeros((len(present), 2), np.uint64)
    np.bitwise_or.at(held, of_structure, elements)
    split_of_group, moved = _fill(order, held, (n_test, n_val))
    split = split_of_group[of_structure]
    _check_not_empty(split, dataset, f"; {len(moved)} group(s) went to train because only they hold some element")
    return split, sorted(names[present[g]] for g in moved)


def check_given_split(
    split: NDArray[np.uint8], elements: Elements, *, dataset: str, name: Callable[[int], str]
) -> None:
    """Accepts the split (S,) that the files bring, or says why it cannot be used. It is never changed.

    Args:
        split: (S,) a `Split` each.
        elements: (S, 2) set of elements of each structure.
        name: where a structure comes from, for messages.

    Raises:
        RamifyError: only some structures have a split, a split is empty, or validation or test hold an element that
            train does not.
    """
    without = np.flatnonzero(split == Split.NONE)
    if len(without):
        raise RamifyError(
            f"dataset '{dataset}': {len(without)} of {len(split)} structures are in no split while the files put "
            f"others into one, e.g. {_examples(without, name)}",
            fix="state the split of every file: `path: {train: ..., val: ..., test: ...}`",
        )
    _check_not_empty(split, dataset, "")
    unseen = elements & ~np.bitwise_or.reduce(elements[split == Split.TRAIN], axis=0)
    rows = np.flatnonzero(unseen.any(axis=1))
    if len(rows):
        symbols = ", ".join(SYMBOLS[z] for z in element_numbers(np.bitwise_or.reduce(unseen[rows], axis=0)))
        raise RamifyError(
            f"dataset '{dataset}': the given validation and test splits hold {symbols}, which no training structure "
            f"does, in {len(rows)} structure(s), e.g. {_examples(rows, name)}",
            fix="move such structures to the training files, or let `split` divide the groups instead of stating files "
            "by split",
        )


def _fill(order: Sequence[int], held: Elements, wanted: tuple[int, int]) -> tuple[NDArray[np.uint8], list[int]]:
    """Takes groups in `order` out of train, `wanted` of them for test and val, but never the last with some element.

    Returns:
        (G,) the split of each group, and the groups that had to stay in train when it was their turn.
    """
    split_of_group = np.full(len(order), Split.TRAIN, np.uint8)
    in_train = np.array([int((held[:, z // 64] >> np.uint64(z % 64) & np.uint64(1)).sum()) for z in range(128)])
    stayed: list[int] = []
    remaining = iter(order)
    for split, number in zip((Split.TEST, Split.VAL), wanted, strict=True):
        taken = 0
        while taken < number and (group := next(remaining, None)) is not None:
            elements = element_numbers(held[group])
            if (in_train[elements] < 2).any():
                stayed.append(group)
                continue
            in_train[elements] -= 1
            split_of_group[group] = split
            taken += 1
    return split_of_group, stayed


def _check_fractions(fractions: Mapping[str, float], dataset: str) -> None:
    """Both fractions are needed, and something must be left for train."""
    wrong = set(fractions) != {"val", "test"} or any(not 0 < f < 1 for f in fractions.values())
    if wrong or sum(fractions.values()) >= 1:
        stated = ", ".join(f"{k}: {v:g}" for k, v in fractions.items())
        raise RamifyError(
            f"datasets.{dataset}.split is {{{stated}}}; val and test must both be above 0, and below 1 together",
            fix="e.g. `split: {val: 0.1, test: 0.1}`",
        )


def _check_not_empty(split: NDArray[np.uint8], dataset: str, why: str) -> None:
    """Every split needs a structure."""
    counts = np.bincount(split, minlength=len(Split))
    empty = [name for name in SPLITS if counts[Split[name.upper()]] == 0]
    if empty:
        sizes = ", ".join(f"{name} {counts[Split[name.upper()]]}" for name in SPLITS)
        raise RamifyError(
            f"dataset '{dataset}': the split(s) {', '.join(empty)} are empty ({sizes}){why}",
            fix="bring structures for each split, or change `split` or `split_seed`",
        )


def _examples(rows: NDArray[np.int64], name: Callable[[int], str]) -> str:
    """A few names."""
    return ", ".join(name(int(row)) for row in rows[:EXAMPLES])
