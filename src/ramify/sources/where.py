"""The recipe keys `where`, `every` and `limit`: selection of the structures of a dataset."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from ramify.elements import NUMBERS
from ramify.sources.quarantine import Quarantine, ranges
from ramify.structures import STATES, Structures

COLUMNS = ("n_atoms", "elements", "group", "periodic")
"""Values that every format has for a structure."""

Scalar = bool | int | float | str


class Range(BaseModel):
    """A range from `min` to `max`, both included; at least one is required."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: float | None = None
    """Smallest value."""
    max: float | None = None
    """Largest value."""

    @model_validator(mode="after")
    def _has_an_end(self) -> "Range":
        if self.min is None and self.max is None:
            raise ValueError("a range needs `min` or `max`")
        return self


Condition = Range | list[Scalar] | Scalar
"""A value, a list of accepted values, or a range."""


def is_condition(value: Any) -> bool:
    """Whether a value of a recipe has the form of a condition."""
    if isinstance(value, Range):
        return True
    if isinstance(value, Mapping):
        ends = [end for end in value.values() if end is not None]
        return {"min", "max"} >= value.keys() and bool(ends) and all(type(end) in (int, float) for end in ends)
    return all(isinstance(one, bool | int | float | str) for one in (value if isinstance(value, list) else [value]))


def left_out(name: str) -> str:
    """The reason by which structures excluded by a condition on `name` are counted."""
    return f"left out by where ({name})"


NOT_THE_NTH = "left out by every"
BEYOND_LIMIT = "left out by limit"


def accepts(condition: Condition, value: Any) -> bool:
    """Returns whether a value of a file fulfils a condition; a number and its text are different values."""
    plain = value.item() if isinstance(value, np.generic | np.ndarray) and np.size(value) == 1 else value
    if isinstance(condition, Range):
        if isinstance(plain, bool) or not isinstance(plain, int | float):
            return False
        return (condition.min is None or plain >= condition.min) and (condition.max is None or plain <= condition.max)
    accepted = condition if isinstance(condition, list) else [condition]
    return any(isinstance(plain, str) == isinstance(a, str) and bool(np.all(plain == a)) for a in accepted)


def rejected_by(where: Mapping[str, Condition], found: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    """Returns the first name whose condition the named values of a file do not fulfil; an absent value fulfils none.
    Names of `COLUMNS` and `columns` are left to `select`."""
    for name, condition in where.items():
        if name not in (*COLUMNS, *columns) and not (found.get(name) is not None and accepts(condition, found[name])):
            return name
    return None


def select(
    chunk: Structures, where: Mapping[str, Condition], quarantine: Quarantine, columns: Sequence[str] = ()
) -> Structures:
    """Selects the structures that fulfil the conditions on `COLUMNS` and on those of `columns`, charge and spin (an
    absent value fulfils none); the others are counted."""
    for name in (name for name in (*COLUMNS, *columns) if name in where):
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
    if name == "elements":  # the condition must contain all elements of a structure
        named = condition if isinstance(condition, list) else [condition]
        wanted = np.zeros(256, np.bool_)
        wanted[[NUMBERS[str(symbol)] for symbol in named]] = True
        others = np.bincount(chunk.structure_of_atom[~wanted[chunk.numbers]], minlength=len(chunk))
        return np.asarray(others == 0)
    if name == "group":
        named_groups = np.array([accepts(condition, group) for group in chunk.group_names], np.bool_)
        return np.asarray(named_groups[chunk.group])
    if name in STATES:
        stated = getattr(chunk, name)
        return np.array([not np.isnan(value) and accepts(condition, value) for value in stated.tolist()], np.bool_)
    values: NDArray[Any] = chunk.n_atoms if name == "n_atoms" else np.any(chunk.pbc, axis=1)
    known = {value: accepts(condition, value) for value in np.unique(values).tolist()}
    return np.array([known[value] for value in values.tolist()], np.bool_)
