"""Sampler: the structures of a step as a pure function of (seed, step), computed on each rank without communication.

Every dataset has an infinite stream: a sequence of permutations of its rows. Integer arithmetic on the step number
gives the number of structures from each stream, such that every step has exactly `batch` structures, the cumulative
number of each dataset deviates from its fraction by a structure or two, and no row is skipped or repeated in a pass.
"""

import hashlib
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from ramify.batches.permutation import LargePermutation

_ONE = 1 << 32
"""Fractions are integer multiples of 2^-32."""

_GOLDEN = 2654435769
"""2^32 / golden ratio: successive multiples modulo 2^32 are evenly distributed (Knuth, TAOCP 3, 6.4)."""

_BLOCK = 1 << 20
"""Steps per block when computing the position in a stream."""


LARGE = 1 << 22
"""Number of rows above which a permutation is computed on demand instead of stored, which would need more than
34 MB."""

Rows = Callable[[int, int], NDArray[np.int64]]
"""Function of (start, count) that returns rows of a pass."""


class BatchSampler:
    """Samples batches from several datasets.

    Args:
        sizes: number of training structures by dataset, in the order of the recipe.
        weights: relative fraction of each dataset in a batch.
        batch: structures per step.
        seed: seed of the permutations.

    Raises:
        ValueError: a dataset without structures.
    """

    def __init__(self, sizes: Mapping[str, int], weights: Mapping[str, float], batch: int, seed: int) -> None:
        if empty := [name for name, size in sizes.items() if size < 1]:
            raise ValueError(f"no training structures in {', '.join(empty)}")
        self.sizes = dict(sizes)
        self.batch = batch
        self.seed = seed
        self._shares = _whole_shares(np.array([weights[name] for name in sizes], np.float64))
        self._permutations: dict[str, tuple[int, Rows]] = {}
        self._start, self._taken = 0, np.zeros(len(self.sizes), np.int64)

    def start_at(self, step: int, positions: Mapping[str, int]) -> None:
        """Starts at `step`, before which `positions` (default 0) structures of each dataset were used.

        This has no effect if all previous steps had the same datasets; if datasets were added or dropped, the remaining
        ones continue with their next structure.
        """
        self._start = step
        self._taken = np.array([positions.get(name, 0) for name in self.sizes], np.int64)

    @property
    def steps_per_epoch(self) -> float:
        """Number of steps that use as many structures as all datasets contain."""
        return sum(self.sizes.values()) / self.batch

    def shares(self) -> dict[str, float]:
        """Fraction of each dataset in a batch; the sum is 1."""
        return {name: int(share) / _ONE for name, share in zip(self.sizes, self._shares, strict=True)}

    def counts(self, step: int) -> dict[str, int]:
        """Number of structures of each dataset in step `step` (from 0)."""
        return dict(zip(self.sizes, self._counts(np.array([step]))[0].tolist(), strict=True))

    def position(self, step: int) -> dict[str, int]:
        """Number of structures of each dataset in all steps before `step`.

        Raises:
            ValueError: `step` is before the start, see `start_at`.
        """
        if step < self._start:
            raise ValueError(f"positions are known from step {self._start} on, not at {step}")
        total = self._taken.copy()
        for start in range(self._start, step, _BLOCK):
            total += self._counts(np.arange(start, min(step, start + _BLOCK))).sum(axis=0)
        return dict(zip(self.sizes, total.tolist(), strict=True))

    def rows(self, name: str, start: int, count: int) -> NDArray[np.int64]:
        """Rows `start` to `start + count` of the infinite stream of dataset `name`."""
        size, taken = self.sizes[name], []
        while count > 0:
            lap, offset = divmod(start, size)
            piece = self._permutation(name, lap)(offset, min(count, size - offset))
            taken.append(piece)
            start, count = start + len(piece), count - len(piece)
        return np.concatenate(taken) if taken else np.zeros(0, np.int64)

    def _counts(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """(steps, datasets) numbers of structures: the integer part of batch x fraction, and the remainder by
        systematic sampling: dataset d gets one more for every point u + k in its interval of cumulative remainders."""
        whole, fraction = np.divmod(self.batch * self._shares, _ONE)
        edges = np.concatenate([[0], np.cumsum(fraction)])
        u = (steps.astype(np.uint64) * np.uint64(_GOLDEN) % np.uint64(_ONE)).astype(np.int64)
        points = -((u[:, None] - edges) // _ONE)  # ceil((edge - u) / 1): points left of each edge
        return whole + np.diff(points, axis=1)

    def _permutation(self, name: str, lap: int) -> Rows:
        """Permutation of pass `lap` over a dataset; the last one is cached."""
        kept = self._permutations.get(name)
        if kept is None or kept[0] != lap:
            digest = hashlib.blake2b(f"{self.seed}/{name}/{lap}".encode(), digest_size=16).digest()
            kept = (lap, _order(self.sizes[name], int.from_bytes(digest, "little")))
            self._permutations[name] = kept
        return kept[1]


def _order(size: int, key: int) -> Rows:
    """Random permutation of `size` rows."""
    if size > LARGE:
        return LargePermutation(size, key).rows
    shuffled = np.random.Generator(np.random.Philox(key=key)).permutation(size)
    return lambda start, count: shuffled[start : start + count]


def _whole_shares(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Converts weights to integers with the exact sum 2^32; the largest absorbs the rounding error."""
    shares = np.floor(weights / weights.sum() * _ONE).astype(np.int64)
    shares[np.argmax(shares)] += _ONE - shares.sum()
    return shares
