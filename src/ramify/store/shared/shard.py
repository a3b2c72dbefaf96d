"""Loading of a shard of a store: read from its files, verified, and packed as records."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.packing import filled
from ramify.store.blocks import BLOCK_ROWS, block_count, block_rows
from ramify.store.columns import COLUMNS, STATE_COLUMNS
from ramify.store.files import MappedFiles, Scratch, StoreFiles, check_block
from ramify.store.row_index import RowIndex
from ramify.store.shared.node_memory import NodeMemory
from ramify.store.shared.records import Words, pack

ROWS_AT_ONCE = 2048
ATOMS_AT_ONCE = 16_000
"""Maximum size packed at once (a single structure may be larger): bounds the additional memory, and keeps the data in
the cache of a processor."""


def shared_n_atoms(files: StoreFiles) -> tuple[NDArray[np.int32], Callable[[], None]]:
    """Numbers of atoms of all structures of a store in memory shared by the node, and a function that releases it.

    Raises:
        RamifyError: damaged data.
    """
    if not isinstance(files, MappedFiles):
        memory = NodeMemory(files, ["n_atoms"])
        return memory.columns["n_atoms"], memory.close
    mapped = files.map("n_atoms")
    for block in range(block_count(len(mapped))):
        check_block(files, "n_atoms", block, mapped[block_rows(block, len(mapped))])
    return mapped, lambda: None


def load_shard(files: StoreFiles, n_atoms: NDArray[np.int32], rows: range, index: RowIndex, out: Words) -> None:
    """Packs the structures `rows` of a store into `out`.

    Args:
        files: files of the store.
        n_atoms: (S,) numbers of atoms of the whole store.
        rows: rows of the shard.
        index: start of the record of each row of the store, in words; `out` begins with that of `rows.start`.
        out: destination.

    Raises:
        RamifyError: damaged data.
    """
    blocks = _Blocks(files)
    if not len(rows):
        return
    begin = int(index.starts(np.array([rows.start]))[0])
    first_atom = int(RowIndex(n_atoms).starts(np.array([rows.start]))[0])
    counts = n_atoms[rows.start : rows.stop]
    ones = np.broadcast_to(np.int64(1), counts.shape)
    for part in filled((counts, ones), (ATOMS_AT_ONCE, ROWS_AT_ONCE)):
        some = rows[part]
        atoms = range(first_atom, first_atom + int(n_atoms[some.start : some.stop].sum(dtype=np.int64)))
        columns = {
            name: blocks.rows(name, atoms if kind.per_atom else some)
            for name, kind in (COLUMNS | STATE_COLUMNS).items()
            if name != "n_atoms" and name in files.manifest.columns
        }
        columns["n_atoms"] = n_atoms[some.start : some.stop]
        pack(columns, out, index.starts(np.arange(some.start, some.stop)) - begin)
        first_atom = atoms.stop


class _Blocks:
    """Reads rows of columns block by block in ascending order; the last block of each column is cached."""

    def __init__(self, files: StoreFiles) -> None:
        self._files = files
        self._memory = {name: Scratch() for name in files.manifest.columns}
        self._kept: dict[str, tuple[int, NDArray[Any]]] = {}

    def rows(self, column: str, rows: range) -> NDArray[Any]:
        """Reads rows of a column; the result is valid until the next call for this column.

        Raises:
            RamifyError: a checksum does not match.
        """
        parts: list[NDArray[Any]] = []
        for block in range(rows.start // BLOCK_ROWS, (rows.stop - 1) // BLOCK_ROWS + 1):
            if parts:  # the next block replaces it
                parts[-1] = parts[-1].copy()
            first = block * BLOCK_ROWS
            parts.append(self._block(column, block)[max(rows.start - first, 0) : rows.stop - first])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _block(self, column: str, block: int) -> NDArray[Any]:
        number, values = self._kept.get(column, (-1, None))
        if values is None or number != block:
            stated = self._files.manifest.columns[column]
            held = block_rows(block, stated.shape[0])
            values = self._memory[column].array((held.stop - held.start, *stated.shape[1:]), stated.dtype)
            self._files.read(column, held.start, values)
            check_block(self._files, column, block, values)
            self._kept[column] = (block, values)
        return values
