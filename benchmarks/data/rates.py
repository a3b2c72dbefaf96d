"""Rates of drawing random batches."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

BATCH = 128
ROUNDS, SECONDS = 5, 0.4
"""Number and duration of the rounds; the best rate counts, since other programs only reduce it."""


def draws(size: int, seed: int = 0) -> Iterator[NDArray[np.int64]]:
    """Yields random rows of batches, sorted as in the loader."""
    rng = np.random.default_rng(seed)
    while True:
        yield np.sort(rng.integers(0, size, BATCH))


def rate(make: Callable[[], Any]) -> dict[str, float]:
    """Structures per second of wall time and of processor time; `make` makes one batch."""
    make()
    wall, processor = [], []
    for _ in range(ROUNDS):
        begun, used, made = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - begun < SECONDS:
            make()
            made += 1
        wall.append(made * BATCH / (time.perf_counter() - begun))
        processor.append(made * BATCH / (time.process_time() - used))
    return {"structures_per_s": max(wall), "structures_per_cpu_s": max(processor)}
