"""Random permutation of very many rows with random access, without storing the permutation.

A shuffled list of 544 million rows needs 4.4 GB in every process and half a minute at the start of every pass. Here
element k of the permutation is computed from k by a Feistel network (Luby and Rackoff, doi:10.1137/0217022), which
permutes all integers of a given number of bits; results beyond the last row are mapped again until they are valid
(cycle walking, Black and Rogaway, doi:10.1007/3-540-45760-7_9).
"""

import numpy as np
from numpy.typing import NDArray

ROUNDS = 4
"""Rounds of the network. Three give a pseudo-random permutation if the round function is pseudo-random."""

STRETCH = 1 << 16
"""Rows computed at once, to make the overhead per call negligible."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class LargePermutation:
    """A random permutation of the integers below `size`.

    Args:
        size: number of rows.
        key: 128 bits that determine the permutation.
    """

    def __init__(self, size: int, key: int) -> None:
        self.size = size
        bits = max(2, (size - 1).bit_length())
        self._low = np.uint64(bits // 2)
        self._low_mask, self._high_mask = (np.uint64((1 << b) - 1) for b in (bits // 2, bits - bits // 2))
        words = np.array([key & (2**64 - 1), key >> 64], np.uint64)
        with np.errstate(over="ignore"):
            self._keys = _mixed(words[0] + np.arange(2 * ROUNDS, dtype=np.uint64) * _GOLDEN) ^ words[1]
        self._kept: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, np.int64))

    def rows(self, start: int, count: int) -> NDArray[np.int64]:
        """Elements `start` to `start + count` of the permutation, which must be within `size`."""
        pieces = []
        while count > 0:
            stretch, offset = divmod(start, STRETCH)
            piece = self._stretch(stretch)[offset : offset + count]
            pieces.append(piece)
            start, count = start + len(piece), count - len(piece)
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)

    def _stretch(self, number: int) -> NDArray[np.int64]:
        """One block of the permutation; the last one is cached."""
        if self._kept[0] != number:
            begin = number * STRETCH
            values = self._network(np.arange(begin, min(begin + STRETCH, self.size), dtype=np.uint64))
            while len(outside := np.flatnonzero(values >= self.size)):
                values[outside] = self._network(values[outside])
            self._kept = (number, values.astype(np.int64))
        return self._kept[1]

    def _network(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        low, high = values & self._low_mask, values >> self._low
        for k in range(0, 2 * ROUNDS, 2):
            high = high ^ (_mixed(low + self._keys[k]) & self._high_mask)
            low = low ^ (_mixed(high + self._keys[k + 1]) & self._low_mask)
        return (high << self._low) | low


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64 (Steele, Lea, Flood, doi:10.1145/2660193.2660195): a fixed pseudo-random number for each value."""
    z = values * _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
