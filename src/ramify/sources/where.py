"""The recipe key `where`: which structures of a file belong to a dataset."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.elements import NUMBERS
from ramify.sources.conditions import COLUMNS, Condition, accepts, left_out
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
