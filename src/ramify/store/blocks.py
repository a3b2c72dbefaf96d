"""Checksums of blocks of rows, to verify a part of a column without reading the whole."""

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 1 << 18
"""Rows per block (atoms or structures): 3 MB of positions, 10 MB of cells. Small enough to verify when the first of its
rows is read, large enough that the checksums of 544 million structures need less than 2 MB."""


class BlockSums:
    """Computes CRC-32 checksums of the blocks of one column while rows are appended in pieces of any size."""

    def __init__(self) -> None:
        self._sums: list[int] = []
        self._sum, self._rows = 0, 0

    def add(self, piece: NDArray[Any]) -> None:
        """Adds the next rows, contiguous in memory."""
        while len(piece):
            part, piece = piece[: BLOCK_ROWS - self._rows], piece[BLOCK_ROWS - self._rows :]
            self._sum = zlib.crc32(memory_of(part), self._sum)
            self._rows += len(part)
            if self._rows == BLOCK_ROWS:
                self._close()

    def finish(self) -> list[int]:
        """Returns the checksums of all blocks; the last block may be shorter."""
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
    """Rows of block number `block` in a column of `rows` rows."""
    return slice(block * BLOCK_ROWS, min(rows, (block + 1) * BLOCK_ROWS))


def block_count(rows: int) -> int:
    """Number of blocks of a column of `rows` rows."""
    return -(-rows // BLOCK_ROWS)


def touched_blocks(first: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Blocks, ascending, that contain any of the `counts` rows from each of `first`; counts are at least 1."""
    begin, end = first // BLOCK_ROWS, (first + counts - 1) // BLOCK_ROWS
    longest = int((end - begin).max(initial=0))
    return np.unique(np.concatenate([np.minimum(begin + k, end) for k in range(longest + 1)]))


def memory_of(array: NDArray[Any]) -> memoryview:
    """Bytes of a contiguous array, which may be empty (an empty view cannot be cast)."""
    return memoryview(array.data).cast("B") if array.size else memoryview(b"")
