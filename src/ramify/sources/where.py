"""The recipe keys `where` and `every`: which structures of a file belong to a dataset."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.elements import NUMBERS
from ramify.sources.conditions import COLUMNS, NOT_THE_NTH, Condition, accepts, left_out
from ramify.sources.parsing.hdf5 import ranges
from ramify.sources.quarantine import Quarantine
from ramify.structures import Structures


def select(chunk: Structures, where: Mapping[str, Condition], quarantine: Quarantine) -> Structures:
    """The structures that fulfil the conditions on `COLUMNS`; the others are counted."""
    for name in (name for name in COLUMNS if name in where):
        if not len(chunk):
            return chunk
        keep = _fulfil(chunk, name, where[name])
        for origin in np.unique(chunk.origin[~keep]).tolist():
            rows = np.sort(chunk.row[~keep & (chunk.origin == origin)])
            record = f"{chunk.origin_names[origin]}[{ranges(rows)}]"
            quarantine.add(record, left_out(name), count=len(rows))
        chunk = chunk if keep.all() else chunk.take(np.flatnonzero(keep))
    return chunk


def each_nth(chunk: Structures, every: int, before: int, quarantine: Quarantine) -> Structures:
    """Each n-th structure; the others are counted.

    Args:
        chunk: structures in the order of the file.
        every: n.
        before: number of structures of the file, or of the part of it, that came before the chunk.
        quarantine: for the others.
    """
    index = np.arange(before, before + len(chunk))
    keep = np.flatnonzero(index % every == 0)
    if left := len(chunk) - len(keep):
        others = np.flatnonzero(index % every)
        last = f" to {chunk.name(int(others[-1]))}" if left > 1 else ""
        quarantine.add(f"{chunk.name(int(others[0]))}{last}", NOT_THE_NTH, count=left)
    return chunk.take(keep) if left else chunk


def _fulfil(chunk: Structures, name: str, condition: Condition) -> NDArray[np.bool_]:
    """(S,) whether each structure fulfils a condition."""
    if name == "elements":  # all of its elements are among those named
        named = condition if isinstance(condition, list) else [condition]
        wanted = np.zeros(256, np.bool_)
        wanted[[NUMBERS[str(symbol)] for symbol in named]] = True
        others = np.bincount(chunk.structure_of_atom[~wanted[chunk.numbers]], minlength=len(chunk))
        return np.asarray(others == 0)
    if name == "group":
        named_groups = np.array([accepts(condition, group) for group in chunk.group_names], np.bool_)
        return np.asarray(named_groups[chunk.group])
    values: NDArray[Any] = chunk.n_atoms if name == "n_atoms" else np.any(chunk.pbc, axis=1)
    known = {value: accepts(condition, value) for value in np.unique(values).tolist()}
    return np.array([known[value] for value in values.tolist()], np.bool_)
