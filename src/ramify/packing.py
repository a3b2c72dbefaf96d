"""Partition of rows of different sizes into consecutive pieces, of about equal size or within limits."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray


def pieces_of(sizes: NDArray[np.integer], about: int) -> Iterator[slice]:
    """Yields consecutive rows in pieces of total size about `about`, in one vectorised pass.

    A row belongs to the piece number floor(sum of the sizes before it / `about`); so a piece exceeds `about` by less
    than its last row, a row of size 0 does not start a piece, and no piece is empty.

    Args:
        sizes: (n,) sizes of the rows, e.g. the atoms of structures.
        about: target size of a piece.
    """
    before = np.cumsum(sizes, dtype=np.int64)
    before -= sizes
    cuts = (np.flatnonzero(np.diff(before // about)) + 1).tolist()
    yield from (slice(a, b) for a, b in zip([0, *cuts], [*cuts, len(sizes)], strict=True) if b > a)


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` of the numbers 0 to `count` - 1, evenly spaced, ascending; the first and the last are included."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(np.int64))


def filled(amounts: Sequence[NDArray[np.integer]], limits: Sequence[float]) -> Iterator[slice]:
    """Yields consecutive rows in the largest pieces within all limits; a single row above a limit is its own piece.

    Memory: one piece, independent of the number of rows.

    Args:
        amounts: each (n,), amounts of one quantity per row, e.g. atoms and edges.
        limits: maximum of the sum of each quantity in a piece.
    """
    start, rows, window = 0, len(amounts[0]), 16
    while start < rows:
        fit = _fitting(amounts, limits, start, start + window)
        while fit == window and start + window < rows:
            window *= 2
            fit = _fitting(amounts, limits, start, start + window)
        stop = start + max(1, fit)
        yield slice(start, stop)
        start, window = stop, max(16, 2 * fit)  # consecutive pieces have similar lengths


def _fitting(amounts: Sequence[NDArray[np.integer]], limits: Sequence[float], start: int, stop: int) -> int:
    """Number of rows from `start`, before `stop`, that are within the limits."""
    sums = (np.cumsum(amount[start:stop], dtype=np.int64) for amount in amounts)
    return min(int(np.searchsorted(s, limit, side="right")) for s, limit in zip(sums, limits, strict=True))
