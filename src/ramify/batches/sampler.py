"""Which structures a step trains on: a pure function of (seed, step), known to everyone without asking.

Every dataset has its own endless stream: one permutation of its rows after another. How many structures a step takes
from each stream is fixed by integer arithmetic on the step number, such that every step takes exactly `batch`
structures, every dataset gets its share to within a structure or two at any step, and no row is skipped or repeated
within a pass.
"""

import hashlib
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from ramify.batches.permutation import LargePermutation

_ONE = 1 << 32
"""Shares are whole numbers of 2^-32."""

_GOLDEN = 2654435769
"""2^32 / golden ratio: successive multiples modulo 2^32 spread as evenly as a sequence can (Knuth, TAOCP 3, 6.4)."""

_BLOCK = 1 << 20
"""Steps counted at a time when a stream's position is looked up."""


LARGE = 1 << 22
"""Rows beyond which the order of a pass is computed as it is needed instead of shuffled as a whole, which would take
more than 34 MB."""

Rows = Callable[[int, int], NDArray[np.int64]]
"""Rows of a pass, from the first of them on and as many as asked for."""


class BatchSampler:
    """The order in which rows of several datasets are trained on.

    Args:
        sizes: training structures by dataset, in the order of the recipe.
        weights: relative share of each dataset in a batch.
        batch: structures per step.
        seed: of the permutations.

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
        """Counts from `step` on, before which each dataset has had `positions` (0 where not named) structures.

        Changes nothing where all steps before had the same datasets; where some have come or gone since, those that
        stayed go on with their next structure.
        """
        self._start = step
        self._taken = np.array([positions.get(name, 0) for name in self.sizes], np.int64)

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which as many structures are visited as all datasets hold."""
        return sum(self.sizes.values()) / self.batch

    def shares(self) -> dict[str, float]:
        """Each dataset's share of a batch; they add up to 1."""
        return {name: int(share) / _ONE for name, share in zip(self.sizes, self._shares, strict=True)}

    def counts(self, step: int) -> dict[str, int]:
        """How many structures step `step` (from 0) takes from each dataset."""
        return dict(zip(self.sizes, self._counts(np.array([step]))[0].tolist(), strict=True))

    def position(self, step: int) -> dict[str, int]:
        """How many structures of each dataset all steps before `step` have taken.

        Raises:
            ValueError: a step before the one that counting began at, see `start_at`.
        """
        if step < self._start:
            raise ValueError(f"positions are known from step {self._start} on, not at {step}")
        total = self._taken.copy()
        for start in range(self._start, step, _BLOCK):
            total += self._counts(np.arange(start, min(step, start + _BLOCK))).sum(axis=0)
        return dict(zip(self.sizes, total.tolist(), strict=True))

    def rows(self, name: str, start: int, count: int) -> NDArray[np.int64]:
        """Rows `start` to `start + count` of the endless stream of dataset `name`."""
        size, taken = self.sizes[name], []
        while count > 0:
            lap, offset = divmod(start, size)
            piece = self._permutation(name, lap)(offset, min(count, size - offset))
            taken.append(piece)
            start, count = start + len(piece), count - len(piece)
        return np.concatenate(taken) if taken else np.zeros(0, np.int64)

    def _counts(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """(steps, datasets). Whole parts of batch x share are given out; what is left is dealt by systematic sampling:
        dataset d gets one more for every point u + k that falls into its stretch of the line of fractions."""
        whole, fraction = np.divmod(self.batch * self._shares, _ONE)
        edges = np.concatenate([[0], np.cumsum(fraction)])
        u = (steps.astype(np.uint64) * np.uint64(_GOLDEN) % np.uint64(_ONE)).astype(np.int64)
        points = -((u[:, None] - edges) // _ONE)  # ceil((edge - u) / 1): points left of each edge
        return whole + np.diff(points, axis=1)

    def _permutation(self, name: str, lap: int) -> Rows:
        """The order of pass `lap` over a dataset; the last one used is kept."""
        kept = self._permutations.get(name)
        if kept is None or kept[0] != lap:
            digest = hashlib.blake2b(f"{self.seed}/{name}/{lap}".encode(), digest_size=16).digest()
            kept = (lap, _order(self.sizes[name], int.from_bytes(digest, "little")))
            self._permutations[name] = kept
        return kept[1]


def _order(size: int, key: int) -> Rows:
    """A random order of `size` rows."""
    if size > LARGE:
        return LargePermutation(size, key).rows
    shuffled = np.random.Generator(np.random.Philox(key=key)).permutation(size)
    return lambda start, count: shuffled[start : start + count]


def _whole_shares(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Weights as whole numbers that add up to 2^32 exactly; the largest takes the rounding."""
    shares = np.floor(weights / weights.sum() * _ONE).astype(np.int64)
    shares[np.argmax(shares)] += _ONE - shares.sum()
    return shares
