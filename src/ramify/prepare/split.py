"""Training, validation and test split: by group, so that near copies never stand on both sides, unless the recipe says
otherwise; where the files bring a split it is honoured, and only what they do not bring is carved out of train."""

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
"""(..., 2) sets of elements as bits: bit z % 64 of word z // 64."""

EXAMPLES = 3
"""Structures that an error names."""
FAR_OFF = 1.5
"""A split that has so many times the wanted number of structures, or that part of it, is said to have."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ToSplit:
    """S structures of a dataset, in source order.

    Attributes:
        dataset: its name.
        group, origin: (S,) indices into `groups` and `origins`.
        row: (S,) position inside the origin.
        groups, origins: names; those without a structure do not count.
        elements: (S, 2) set of elements of each, see `element_bits`.
        given: (S,) the `Split` that the files bring.
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
        """Where a structure comes from, as `Structures.name`."""
        return f"{self.origins[self.origin[index]]}[{self.row[index]}]"

    def take(self, rows: NDArray[np.int64]) -> "ToSplit":
        """Some of them."""
        columns = {name: getattr(self, name)[rows] for name in ("group", "origin", "row", "elements", "given")}
        return ToSplit(dataset=self.dataset, groups=self.groups, origins=self.origins, **columns)


@dataclass(frozen=True, slots=True)
class Divided:
    """What came out.

    Attributes:
        split: (S,) a `Split` each.
        moved: sorted names of the groups (or of groups with structures) that stay in train because only they hold some
            element.
        findings: what the user should know.
    """

    split: NDArray[np.uint8]
    moved: list[str]
    findings: list[Finding]


def divide(structures: ToSplit, options: SplitOptions, seed: int) -> Divided:
    """Splits structures, or honours the split that their files bring.

    Validation and test are taken out of the training files where the files bring none, out of everything where they
    bring no split at all: `options.val` and `options.test` of these structures, as far as `options.by` allows, and at
    least one; none where the fraction is 0. Structures whose elements would then be absent from train stay in it.

    Args:
        structures: to split.
        options: the fractions, and what must stay together.
        seed: enters the hash that orders groups.

    Raises:
        RamifyError: only some structures have a split, too few groups, a split left empty, or given validation or test
            structures with elements that no training structure has.
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
    """Whole groups, in the order of `group_hash`: first those of test, then those of validation."""
    present, of_structure = np.unique(pool.group, return_inverse=True)
    names = [pool.groups[group] for group in present]
    if len(present) <= len(targets):
        parts = " and ".join(part.name.lower() for part in targets)
        raise RamifyError(
            f"dataset '{pool.dataset}': {len(present)} group(s) cannot be split into train, {parts}; groups never part",
            fix="bring more groups, state files by split: `path: {train: ..., val: ..., test: ...}`, or state "
            "`split: {by: block}` to cut trajectories into blocks",
        )
    order = sorted(range(len(present)), key=lambda g: (group_hash(seed, pool.dataset, names[g]), names[g]))
    held = np.zeros((len(present), 2), np.uint64)
    np.bitwise_or.at(held, of_structure, pool.elements)
    split_of_group, stayed = _fill(order, np.bincount(of_structure).tolist(), held, targets)
    return split_of_group[of_structure], sorted(names[g] for g in stayed)


def _fill(
    order: Sequence[int], sizes: Sequence[int], held: Elements, targets: Mapping[Split, int]
) -> tuple[NDArray[np.uint8], set[int]]:
    """Takes groups in `order` out of train, but never the last with some element, and never so many that train or a
    later split is left without. A group is taken where the split comes nearer to its target by it; if there is none,
    the smallest is.

    Returns:
        (G,) the split of each group, and the groups that had to stay in train when it was their turn.
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
    """The first one, if there is any."""
    return list(islice(groups, 1))


def _by_block(pool: ToSplit, targets: Mapping[Split, int], seed: int) -> tuple[NDArray[np.uint8], list[str]]:
    """The structures of a group in one file, or place in a file, are a trajectory: its first block trains, the next is
    for validation, the last for test. What is rounded off in one trajectory goes to the next."""
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
    """Single structures, in the order of a hash of where they come from."""
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
    """Structures with an element that training would not see go back to it; and the names of their groups."""
    train = split == Split.TRAIN
    known = np.bitwise_or.reduce(pool.elements[train], axis=0) if train.any() else np.zeros(2, np.uint64)
    back = np.flatnonzero((pool.elements & ~known).any(axis=1))
    split[back] = Split.TRAIN
    return split, sorted({pool.groups[group] for group in np.unique(pool.group[back]).tolist()})


def _said(split: NDArray[np.uint8], targets: Mapping[Split, int], by: str, is_given: bool) -> Iterator[Finding]:
    """What of a split does not follow from its files."""
    for part, target in targets.items():
        name, found = part.name.lower(), int((split == part).sum())
        if is_given:
            yield Finding(
                text=f"the files bring no {name} split: {found} structures of the training files were taken for it",
                fix=f"`split: {{{name}: 0}}` leaves it empty",
            )
        if found and not target / FAR_OFF <= found <= target * FAR_OFF and abs(found - target) > 1:
            yield Finding(
                text=f"the {name} split has {found} structures where {target} were wanted: groups never part",
                fix="`split: {by: block}` cuts trajectories into blocks",
            )
    if by == "structure":
        yield Finding(
            text="split by structure: near copies stand on both sides, so that errors look smaller than on new data",
            fix="`split: {by: group}` keeps them together, `split: {by: block}` cuts trajectories",
        )


def _refuse_partial(structures: ToSplit) -> None:
    without = np.flatnonzero(structures.given == Split.NONE)
    raise RamifyError(
        f"dataset '{structures.dataset}': {len(without)} of {len(structures.given)} structures are in no split while "
        f"the files put others into one, e.g. {_examples(without, structures.name)}",
        fix="state the split of every file: `path: {train: ..., val: ..., test: ...}`",
    )


def _check_elements(split: NDArray[np.uint8], structures: ToSplit) -> None:
    """Validation and test may hold no element that train does not."""
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
            fix="bring structures for each split, change `split` or `split_seed`, or state a fraction of 0 for a split "
            "that you do without",
        )


def _examples(rows: NDArray[np.int64], name: Callable[[int], str]) -> str:
    """A few names."""
    return ", ".join(name(int(row)) for row in rows[:EXAMPLES])
