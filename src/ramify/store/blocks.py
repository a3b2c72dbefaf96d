"""Checksums of blocks of rows: any part of a column can be checked without reading the whole."""

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 1 << 18
"""Rows of a block (atoms or structures, as the column has): 3 MB of positions, 10 MB of cells. Small enough to be
checked when the first of its rows is read, large enough that the sums of 544 million structures stay below 2 MB."""


class BlockSums:
    """CRC-32 of every block of one column, computed while its rows are appended in pieces of any size."""

    def __init__(self) -> None:
        self._sums: list[int] = []
        self._sum, self._rows = 0, 0

    def add(self, piece: NDArray[Any]) -> None:
        """Takes up the next rows, contiguous in memory."""
        while len(piece):
            part, piece = piece[: BLOCK_ROWS - self._rows], piece[BLOCK_ROWS - self._rows :]
            self._sum = zlib.crc32(memory_of(part), self._sum)
            self._rows += len(part)
            if self._rows == BLOCK_ROWS:
                self._close()

    def finish(self) -> list[int]:
        """The sums of all blocks; the last may be shorter."""
        if self._rows:
            self._close()
        return self._sums

    def _close(self) -> None:
        self._sums.append(self._sum)
        self._sum, self._rows = 0, 0


def block_sum(rows: NDArray[Any]) -> int:
    """CRC-32 of the rows of one block, contiguous in memory."""
    return zlib.crc32(memory_of(rows))


def block_rows(block: int, rows: int) -> slice:
    """Which of a column's `rows` rows block number `block` holds."""
    return slice(block * BLOCK_ROWS, min(rows, (block + 1) * BLOCK_ROWS))


def block_count(rows: int) -> int:
    """How many blocks a column of `rows` rows has."""
    return -(-rows // BLOCK_ROWS)


def touched_blocks(first: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The blocks, ascending, that hold any of `counts` rows from each of `first` on; counts are at least 1."""
    begin, end = first // BLOCK_ROWS, (first + counts - 1) // BLOCK_ROWS
    longest = int((end - begin).max(initial=0))
    return np.unique(np.concatenate([np.minimum(begin + k, end) for k in range(longest + 1)]))


def memory_of(array: NDArray[Any]) -> memoryview:
    """The bytes of a contiguous array; a view cannot be cast when it is empty."""
    return memoryview(array.data).cast("B") if array.size else memoryview(b"")
