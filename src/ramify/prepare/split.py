"""Training, validation and test splits: by group by default, so that near-duplicates are in the same split. A split
defined by the files is used; a missing validation or test split is taken from the training files."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ramify.elements import SYMBOLS
from ramify.errors import RamifyError
from ramify.prepare.checks.fingerprints import scramble
from ramify.sources.base import SplitOptions
from ramify.store.manifest import SPLITS, Finding
from ramify.structures import Split

Elements = NDArray[np.uint64]
"""(..., 2) sets of elements as bit masks: bit z % 64 of word z // 64."""

EXAMPLES = 3
"""Maximum number of structures listed in an error."""
FAR_OFF = 1.5
"""A warning is given if a split has this many times the requested number of structures, or this fraction of it."""


def element_bits(numbers: NDArray[np.integer]) -> Elements:
    """(..., 2) one-element sets of atomic numbers (...,)."""
    z = numbers.astype(np.uint64)
    bit = np.uint64(1) << (z % np.uint64(64))
    return np.stack([np.where(z < 64, bit, 0), np.where(z >= 64, bit, 0)], axis=-1).astype(np.uint64)


def element_numbers(bits: Elements) -> list[int]:
    """Atomic numbers in one set (2,)."""
    return [z for z in range(len(SYMBOLS)) if int(bits[z // 64]) >> (z % 64) & 1]


def group_hash(seed: int, dataset: str, group: str) -> int:
    """Hash that orders the groups: independent of machine, version and other groups."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{dataset}:{group}".encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToSplit:
    """S structures of a dataset, in source order.

    Attributes:
        dataset: name of the dataset.
        group, origin: (S,) indices into `groups` and `origins`.
        row: (S,) position inside the origin.
        groups, origins: names, including unused ones.
        elements: (S, 2) set of elements of each, see `element_bits`.
        given: (S,) the `Split` defined by the files.
    """

    dataset: str
    group: NDArray[np.integer]
    origin: NDArray[np.integer]
    row: NDArray[np.integer]
    groups: Sequence[str]
    origins: Sequence[str]
    elements: Elements
    given: NDArray[np.uint8]

    def name(self, index: int) -> str:
        """Origin and row of a structure, as in `Structures.name`."""
        return f"{self.origins[self.origin[index]]}[{self.row[index]}]"

    def take(self, rows: NDArray[np.int64]) -> "ToSplit":
        """Selects structures."""
        columns = {name: getattr(self, name)[rows] for name in ("group", "origin", "row", "elements", "given")}
        return ToSplit(dataset=self.dataset, groups=self.groups, origins=self.origins, **columns)


@dataclass(frozen=True, slots=True)
class Divided:
    """Result of splitting.

    Attributes:
        split: (S,) a `Split` each.
        moved: sorted names of the groups that stay in train (some structures of them, if not split by group) because
            only they contain some element.
        findings: warnings for the user.
    """

    split: NDArray[np.uint8]
    moved: list[str]
    findings: list[Finding]


def divide(structures: ToSplit, options: SplitOptions, seed: int) -> Divided:
    """Splits structures, or uses the split defined by their files.

    A missing validation or test split is taken from the training files, or from all files if they define no split: the
    fractions `options.val` and `options.test` of these structures, approximately for `by: group`, and at least one
    structure; none if the fraction is 0. Structures whose elements would be absent from train stay in it.

    Args:
        structures: structures to split.
        options: fractions and method.
        seed: seed of the hash that orders groups.

    Raises:
        RamifyError: only some structures have a split, too few groups, an empty split, or elements in a given
            validation or test split that are absent from train.
    """
    brought = np.unique(structures.given)
    if len(brought) > 1 and brought[0] == Split.NONE:
        _refuse_partial(structures)
    is_given = bool(len(brought)) and brought[0] != Split.NONE
    fractions = {Split.TEST: options.test, Split.VAL: options.val}
    wanted = {part: f for part, f in fractions.items() if f > 0 and not (is_given and part in brought)}
    split = structures.given.copy() if is_given else np.full(len(structures.given), Split.TRAIN, np.uint8)
    pool = np.flatnonzero(split == Split.TRAIN)
    moved: list[str] = []
    findings: list[Finding] = []
    if len(pool) and wanted:
        targets = {part: max(1, round(fraction * len(pool))) for part, fraction in wanted.items()}
        rule = {"group": _by_group, "block": _by_block, "structure": _by_structure}[options.by]
        split[pool], moved = rule(structures.take(pool), targets, seed)
        findings = [*_said(split, targets, options.by, is_given)]
    needed = {Split.TRAIN, *wanted, *(Split(int(part)) for part in brought if part != Split.NONE)}
    needed |= {part for part, fraction in fractions.items() if is_given and fraction > 0}
    why = f"; {len(moved)} group(s) went to train because only they hold some element" if moved else ""
    _check_not_empty(split, needed, structures.dataset, why)
    _check_elements(split, structures)
    return Divided(split, moved, findings)


def _by_group(pool: ToSplit, targets: Mapping[Split, int], seed: int) -> tuple[NDArray[np.uint8], list[str]]:
    """Splits by whole groups in the order of `group_hash`: first test, then validation."""
    present, of_structure = np.unique(pool.group, return_inverse=True)
    names = [pool.groups[group] for group in present]
    if len(present) <= len(targets):
        parts = " and ".join(part.name.lower() for part in targets)
        raise RamifyError(
            f"dataset '{pool.dataset}': {len(present)} group(s) cannot be split into train, {parts}; groups stay whole",
            fix="add more groups, list files by split: `path: {train: ..., val: ..., test: ...}`, or set "
            "`split: {by: block}` to divide trajectories into blocks",
        )
    order = sorted(range(len(present)), key=lambda g: (group_hash(seed, pool.dataset, names[g]), names[g]))
    held = np.zeros((len(present), 2), np.uint64)
    np.bitwise_or.at(held, of_structure, pool.elements)
    split_of_group, stayed = _fill(order, np.bincount(of_structure).tolist(), held, targets)
    return split_of_group[of_structure], sorted(names[g] for g in stayed)


def _fill(
    order: Sequence[int], sizes: Sequence[int], held: Elements, targets: Mapping[Split, int]
) -> tuple[NDArray[np.uint8], set[int]]:
    """Moves groups in `order` from train to the splits, but never the last group with some element, and never so many
    that train or a later split would be empty. A group is moved if this brings the split closer to its target; if there
    is no such group, the smallest is moved.

    Returns:
        (G,) split of each group, and the groups that had to stay in train.
    """
    split_of_group = np.full(len(order), Split.TRAIN, np.uint8)
    in_train = np.array([int((held[:, z // 64] >> np.uint64(z % 64) & np.uint64(1)).sum()) for z in range(128)])
    stayed: set[int] = set()
    left, smallest = list(order), min(sizes)

    def can_leave(group: int) -> bool:
        elements = element_numbers(held[group])
        if (in_train[elements] < 2).any():
            stayed.add(group)
            return False
        in_train[elements] -= 1
        return True

    for later, (split, target) in zip(range(len(targets) - 1, -1, -1), targets.items(), strict=True):
        chosen: set[int] = set()
        taken = 0
        for group in left:
            if len(left) - len(chosen) <= later + 1 or 2 * taken + smallest > 2 * target:
                break
            if 2 * taken + sizes[group] <= 2 * target and can_leave(group):
                chosen.add(group)
                taken += sizes[group]
        if not chosen:
            chosen = set(_first(group for group in sorted(left, key=lambda g: sizes[g]) if can_leave(group)))
        split_of_group[list(chosen)] = split
        left = [group for group in left if group not in chosen]
    return split_of_group, stayed


def _first(groups: Iterator[int]) -> list[int]:
    """A list with the first group, if any."""
    return list(islice(groups, 1))


def _by_block(pool: ToSplit, targets: Mapping[Split, int], seed: int) -> tuple[NDArray[np.uint8], list[str]]:
    """Splits each trajectory (the structures of a group in one origin) into blocks: train, then validation, then test.
    Rounding errors are carried over to the next trajectory."""
    pairs = np.stack([pool.group, pool.origin], axis=1)
    present, of_structure = np.unique(pairs, axis=0, return_inverse=True)
    of_structure = of_structure.reshape(-1)
    hashes = [group_hash(seed, pool.dataset, f"{pool.groups[g]}:{pool.origins[o]}") for g, o in present.tolist()]
    order = np.argsort(np.array(hashes, np.uint64), kind="stable")
    sizes = np.bincount(of_structure)
    number = np.zeros((len(present), 2), np.int64)
    for k, part in enumerate((Split.TEST, Split.VAL)):
        share = targets.get(part, 0) / len(pool.group)
        number[order, k] = np.diff(np.floor(np.cumsum(sizes[order]) * share + 0.5), prepend=0)
    number[:, 0] = np.minimum(number[:, 0], sizes - 1)
    number[:, 1] = np.minimum(number[:, 1], sizes - 1 - number[:, 0])
    by_trajectory = np.argsort(of_structure, kind="stable")
    from_end = np.empty(len(of_structure), np.int64)
    first = np.cumsum(sizes) - sizes
    place = np.arange(len(of_structure)) - np.repeat(first, sizes)
    from_end[by_trajectory] = np.repeat(sizes, sizes) - 1 - place
    test, val = number[of_structure, 0], number[of_structure, 1]
    split = np.where(from_end < test, Split.TEST, np.where(from_end < test + val, Split.VAL, Split.TRAIN))
    return _keep_elements(split.astype(np.uint8), pool)


def _by_structure(pool: ToSplit, targets: Mapping[Split, int], seed: int) -> tuple[NDArray[np.uint8], list[str]]:
    """Splits by single structures, in the order of a hash of their origin and row."""
    origins = np.zeros(len(pool.origins), np.uint64)
    for origin in np.unique(pool.origin).tolist():
        origins[origin] = group_hash(seed, pool.dataset, pool.origins[origin])
    order = np.lexsort((pool.row, scramble(origins[pool.origin] ^ scramble(pool.row.astype(np.uint64)))))
    split = np.full(len(pool.group), Split.TRAIN, np.uint8)
    start = 0
    for part, target in targets.items():
        split[order[start : start + target]] = part
        start += target
    return _keep_elements(split, pool)


def _keep_elements(split: NDArray[np.uint8], pool: ToSplit) -> tuple[NDArray[np.uint8], list[str]]:
    """Moves structures with elements that are absent from train back to it; returns also the names of their groups."""
    train = split == Split.TRAIN
    known = np.bitwise_or.reduce(pool.elements[train], axis=0) if train.any() else np.zeros(2, np.uint64)
    back = np.flatnonzero((pool.elements & ~known).any(axis=1))
    split[back] = Split.TRAIN
    return split, sorted({pool.groups[group] for group in np.unique(pool.group[back]).tolist()})


def _said(split: NDArray[np.uint8], targets: Mapping[Split, int], by: str, is_given: bool) -> Iterator[Finding]:
    """Yields warnings about a split that is not defined by the files."""
    for part, target in targets.items():
        name, found = part.name.lower(), int((split == part).sum())
        if is_given:
            yield Finding(
                text=f"the files define no {name} split: {found} structures of the training files were used for it",
                fix=f"`split: {{{name}: 0}}` leaves it empty",
            )
        if found and not target / FAR_OFF <= found <= target * FAR_OFF and abs(found - target) > 1:
            yield Finding(
                text=f"the {name} split has {found} structures instead of {target}: groups are never split",
                fix="`split: {by: block}` divides trajectories into blocks",
            )
    if by == "structure":
        yield Finding(
            text="split by structure: near-duplicates are in different splits, so that errors are underestimated",
            fix="`split: {by: group}` keeps them together, `split: {by: block}` divides trajectories",
        )


def _refuse_partial(structures: ToSplit) -> None:
    without = np.flatnonzero(structures.given == Split.NONE)
    raise RamifyError(
        f"dataset '{structures.dataset}': {len(without)} of {len(structures.given)} structures are in no split while "
        f"the files assign a split to others, e.g. {_examples(without, structures.name)}",
        fix="set the split of every file: `path: {train: ..., val: ..., test: ...}`",
    )


def _check_elements(split: NDArray[np.uint8], structures: ToSplit) -> None:
    """Raises an error if validation or test contain elements that are absent from train."""
    unseen = structures.elements & ~np.bitwise_or.reduce(structures.elements[split == Split.TRAIN], axis=0)
    rows = np.flatnonzero(unseen.any(axis=1))
    if len(rows):
        symbols = ", ".join(SYMBOLS[z] for z in element_numbers(np.bitwise_or.reduce(unseen[rows], axis=0)))
        raise RamifyError(
            f"dataset '{structures.dataset}': the given validation and test splits hold {symbols}, which no training "
            f"structure does, in {len(rows)} structure(s), e.g. {_examples(rows, structures.name)}",
            fix="move such structures to the training files, or let `split` divide the groups instead of stating files "
            "by split",
        )


def _check_not_empty(split: NDArray[np.uint8], needed: Collection[Split], dataset: str, why: str) -> None:
    counts = np.bincount(split, minlength=len(Split))
    empty = [name for name in SPLITS if Split[name.upper()] in needed and counts[Split[name.upper()]] == 0]
    if empty:
        sizes = ", ".join(f"{name} {counts[Split[name.upper()]]}" for name in SPLITS)
        raise RamifyError(
            f"dataset '{dataset}': the split(s) {', '.join(empty)} are empty ({sizes}){why}",
            fix="add structures for each split, change `split` or `split_seed`, or set the fraction of an unneeded "
            "split to 0",
        )


def _examples(rows: NDArray[np.int64], name: Callable[[int], str]) -> str:
    """Lists a few names."""
    return ", ".join(name(int(row)) for row in rows[:EXAMPLES])
