"""Measured rates of matrix products on a device in float32 and in bfloat16.

A list of processor features cannot show whether bfloat16 is faster: processors without instructions for it emulate the
products by converting every number, 20 to 50 times slower than float32.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch

SIZES = {"cpu": 256}
"""Rows and columns of the measured products by device type: large enough for the rate of a layer, small enough to take
0.3 ms in float32 on one core, and 10 to 40 ms in bfloat16 on a core without native products."""
ACCELERATOR = 2048
"""The same for all other device types."""
ROUNDS = 5
BUDGET = 5e-3
"""Seconds after which no further round begins. Two rounds are always measured."""


@dataclass(frozen=True, slots=True)
class ProductRates:
    """Rates of square matrix products in operations per second; a multiplication and an addition count as two."""

    fp32: float
    bf16: float

    @property
    def bf16_is_slower(self) -> bool:
        """Whether bfloat16 is slower than float32."""
        return self.bf16 < self.fp32

    @property
    def speedup(self) -> float:
        """Rate of bfloat16 divided by that of float32."""
        return self.bf16 / self.fp32


@cache
def product_rates(device: torch.device) -> ProductRates:
    """The rates of a device; the first call in a process measures them in 10 to 100 ms, on CPUs with one thread.

    Products of the two types alternate, and the shortest time of each counts: other programs can only delay them.
    """
    size = SIZES.get(device.type, ACCELERATOR)
    factors = [torch.ones(size, size, dtype=kind, device=device) for kind in (torch.float32, torch.bfloat16)]
    best = [math.inf, math.inf]
    with one_thread():
        for a in factors:  # warm-up: the first product of each type initialises libraries
            timed(lambda a=a: a @ a, device)  # type: ignore[misc]
        began = time.perf_counter()
        for done in range(ROUNDS):
            if done >= 2 and time.perf_counter() - began > BUDGET:
                break
            best = [min(least, timed(lambda a=a: a @ a, device)) for least, a in zip(best, factors, strict=True)]  # type: ignore[misc]
    fp32, bf16 = (2 * size**3 / seconds for seconds in best)
    return ProductRates(fp32, bf16)


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, PyTorch uses one CPU thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device has finished `work`."""
    began = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - began


def wait_for(device: torch.device) -> None:
    """Returns when the device has finished all queued work."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize(device)
