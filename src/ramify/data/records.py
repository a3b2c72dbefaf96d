"""Structures as records: everything of one structure side by side, so that one read of contiguous bytes fetches it.

A record begins with a head of fixed size (what a structure has once), then come the positions, the forces and the
atomic numbers of its atoms; it ends at a multiple of four bytes, so that all of it can be moved as 32-bit words.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.data.columns import COLUMNS
from ramify.structures import atom_rows

Words = NDArray[np.uint32]
Rows = NDArray[np.int64]

_HEAD_COLUMNS = [name for name, kind in COLUMNS.items() if not kind.per_atom and name != "n_atoms"]
HEAD = np.dtype([*[(name, COLUMNS[name].dtype, COLUMNS[name].row) for name in _HEAD_COLUMNS], ("padding", "u1", (1,))])
"""What a structure has once; its number of atoms is known to who looks for it."""
HEAD_WORDS = HEAD.itemsize // 4
assert HEAD.itemsize % 4 == 0
assert {name for name, kind in COLUMNS.items() if kind.per_atom} == {"positions", "forces", "numbers"}


def record_words(n_atoms: Rows) -> Rows:
    """(T,) 32-bit words of the record of a structure of each size."""
    words: Rows = HEAD_WORDS + 6 * n_atoms + (n_atoms + 3) // 4
    return words


def pack(columns: dict[str, NDArray[Any]], out: Words, at: Rows) -> None:
    """Writes T structures as records.

    Args:
        columns: of the structures, as a store has them.
        out: where to.
        at: (T,) the word at which each record begins.
    """
    n_atoms = columns["n_atoms"].astype(np.int64)
    heads = np.zeros(len(n_atoms), HEAD)
    for name in _HEAD_COLUMNS:
        heads[name] = columns[name]
    out[at[:, None] + np.arange(HEAD_WORDS)] = heads.view(np.uint32).reshape(-1, HEAD_WORDS)
    first = at + HEAD_WORDS
    for name in ("positions", "forces"):
        out[atom_rows(first, 3 * n_atoms)] = np.ascontiguousarray(columns[name]).view(np.uint32).reshape(-1)
        first = first + 3 * n_atoms
    out.view(np.uint8)[atom_rows(4 * first, n_atoms)] = columns["numbers"]


def unpack(words: Words, at: Rows, n_atoms: Rows) -> dict[str, NDArray[Any]]:
    """The columns (but `n_atoms`) of structures whose records lie in `words`.

    Args:
        words: records.
        at: (T,) the word at which each begins.
        n_atoms: (T,) atoms of each.
    """
    heads = np.take(words, at[:, None] + np.arange(HEAD_WORDS)).view(HEAD).reshape(-1)
    columns: dict[str, NDArray[Any]] = {name: np.ascontiguousarray(heads[name]) for name in _HEAD_COLUMNS}
    first, coordinates = at + HEAD_WORDS, 3 * n_atoms
    for name in ("positions", "forces"):
        found = np.take(words, atom_rows(first, coordinates))
        columns[name] = found.view(COLUMNS[name].dtype).reshape(-1, 3)
        first = first + coordinates
    columns["numbers"] = np.take(words.view(np.uint8), atom_rows(4 * first, n_atoms))
    return columns
