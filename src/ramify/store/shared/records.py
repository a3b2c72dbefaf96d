"""Structures as records: all data of one structure in contiguous memory, so that one read fetches it.

A record consists of a header of fixed size (values per structure), positions and forces of each atom, and the atomic
numbers; it is padded to a multiple of four bytes, so that it can be transferred as 32-bit words.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.store.columns import COLUMNS, STATE_COLUMNS
from ramify.structures import atom_rows

Words = NDArray[np.uint32]
Rows = NDArray[np.int64]

_HEAD_COLUMNS = {n: kind for n, kind in (COLUMNS | STATE_COLUMNS).items() if not kind.per_atom and n != "n_atoms"}
HEAD = np.dtype([*[(name, kind.dtype, kind.row) for name, kind in _HEAD_COLUMNS.items()], ("padding", "u1", (1,))])
"""Header: values per structure, without the number of atoms, which readers know. Charge and spin are always there, NaN
where the store has no such column."""
HEAD_WORDS = HEAD.itemsize // 4
_HEAD = np.arange(HEAD_WORDS)
assert HEAD.itemsize % 4 == 0
assert {name: kind.dtype for name, kind in COLUMNS.items() if kind.per_atom} == {
    "numbers": "|u1",
    "positions": "<f4",
    "forces": "<f4",
}


def record_words(n_atoms: Rows) -> Rows:
    """(T,) size of the records in 32-bit words."""
    words: Rows = HEAD_WORDS + 6 * n_atoms + (n_atoms + 3) // 4
    return words


def pack(columns: dict[str, NDArray[Any]], out: Words, at: Rows) -> None:
    """Writes T structures as records.

    Args:
        columns: columns of the structures.
        out: destination.
        at: (T,) first word of each record.
    """
    n_atoms = columns["n_atoms"].astype(np.int64)
    heads = np.zeros(len(n_atoms), HEAD)
    for name in _HEAD_COLUMNS:
        heads[name] = columns.get(name, np.nan)
    out[at[:, None] + _HEAD] = heads.view(np.uint32).reshape(-1, HEAD_WORDS)
    vectors = np.concatenate([columns["positions"], columns["forces"]], axis=1, dtype=np.float32)
    first = at + HEAD_WORDS
    out[atom_rows(first, 6 * n_atoms)] = vectors.view(np.uint32).reshape(-1)
    out.view(np.uint8)[atom_rows(4 * (first + 6 * n_atoms), n_atoms)] = columns["numbers"]


def unpack(words: Words, at: Rows, n_atoms: Rows, columns: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Reads columns of structures from their records.

    Args:
        words: records.
        at: (T,) first word of each record.
        n_atoms: (T,) number of atoms of each structure.
        columns: names of columns other than `n_atoms`.
    """
    heads = words.take(at[:, None] + _HEAD).view(HEAD).reshape(-1)
    found: dict[str, NDArray[Any]] = {
        name: np.ascontiguousarray(heads[name]) for name in columns if name in _HEAD_COLUMNS
    }
    if len(found) < len(columns):
        found |= _unpack_atoms(words, at + HEAD_WORDS, n_atoms)
    return {name: found[name] for name in columns}


def _unpack_atoms(words: Words, first: Rows, n_atoms: Rows) -> dict[str, NDArray[Any]]:
    """Reads the columns of atoms; `first` (T,) is the word after the header of each record."""
    before = np.cumsum(n_atoms) - n_atoms
    atom = np.arange(int(n_atoms.sum()))
    # a window of three words at each offset: indexing then reads vectors instead of words
    windows = np.ndarray((max(0, len(words) - 2),), "V12", words, strides=(4,))
    at = np.repeat(first - 6 * before, n_atoms) + 6 * atom
    positions, forces = (windows[place].view(np.float32).reshape(-1, 3) for place in (at, at + 3))
    numbers = words.view(np.uint8).take(np.repeat(4 * (first + 6 * n_atoms) - before, n_atoms) + atom)
    return {"positions": positions, "forces": forces, "numbers": numbers}
