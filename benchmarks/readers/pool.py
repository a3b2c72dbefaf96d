"""Structures with random positions and labels, from which the files of the benchmark are made."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

POOL = 200
"""Different structures; files repeat them under other names."""
ATOMS = [4, 60]
"""Fewest and most atoms of a structure."""


@dataclass(frozen=True)
class Sample:
    """One structure: numbers (n,), positions and forces (n, 3), a cell of 9 Å, stress (3, 3)."""

    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    forces: NDArray[np.float64]
    energy: float
    stress: NDArray[np.float64]


CELL = 9.0 * np.eye(3)


@cache
def pool() -> list[Sample]:
    """`POOL` structures of `ATOMS` atoms (32 on average)."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(POOL):
        n = int(rng.integers(ATOMS[0], ATOMS[1] + 1))
        stress = rng.normal(0, 0.01, (3, 3))
        made.append(
            Sample(
                numbers=rng.choice([1, 6, 7, 8, 14, 29], n),
                positions=rng.uniform(0, 9, (n, 3)).round(8),
                forces=rng.normal(0, 0.5, (n, 3)).round(8),
                energy=round(float(-5.0 * n + rng.normal()), 8),
                stress=((stress + stress.T) / 2).round(8),
            )
        )
    return made
