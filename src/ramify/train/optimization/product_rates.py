"""How fast a device multiplies matrices in float32 and in bfloat16, measured.

Whether bfloat16 is worth its rounding cannot be read from a list of features: processors without instructions for it
compute the same products all the same, converting every number, 20 to 50 times more slowly than in float32.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch

SIZES = {"cpu": 256}
"""Rows and columns of the products by kind of device: large enough for the rate that a layer reaches, small enough to
take 0.3 ms in float32 on one core, and 10 to 40 ms in bfloat16 on a core that has no such products."""
ACCELERATOR = 2048
"""The same on all other kinds of device."""
ROUNDS = 5
BUDGET = 5e-3
"""Seconds after which no further round begins. Two are always taken."""


@dataclass(frozen=True, slots=True)
class ProductRates:
    """Of square matrices; operations per second, an addition and a multiplication counted as two."""

    fp32: float
    bf16: float

    @property
    def bf16_is_slower(self) -> bool:
        """Than float32."""
        return self.bf16 < self.fp32

    @property
    def speedup(self) -> float:
        """How many times as fast as float32 bfloat16 is."""
        return self.bf16 / self.fp32


@cache
def product_rates(device: torch.device) -> ProductRates:
    """Measured on the first call of a process for this device, which takes 10 to 100 ms; CPUs by one thread.

    The two kinds of product take turns and the shortest time of each counts: other programs only make one longer.
    """
    size = SIZES.get(device.type, ACCELERATOR)
    factors = [torch.ones(size, size, dtype=kind, device=device) for kind in (torch.float32, torch.bfloat16)]
    best = [math.inf, math.inf]
    with one_thread():
        for a in factors:  # the first product of a kind prepares what the later ones use
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
    """Inside, PyTorch computes with one thread of the CPU."""
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
    """Returns when the device has finished all work that was queued on it."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize(device)
