"""What the machine itself can do, measured by all ranks at once: products, copies, sums over ranks.

The figures of a benchmark are compared with these, and `ramify.bench.predict.speed` fits the speed of the network to
them. Ranks on one node share its memory and its links, so all of them work at the same time here, as they do in a step.
"""

import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from ramify.train.optimization.precision import Name, Precision
from ramify.train.optimization.product_rates import product_rates, timed

PRODUCT = 1024
"""Rows and columns of the product: about the widths and numbers of edges of the model, several times every cache."""
SLOW_PRODUCT = 256
"""The same in bfloat16 on a device where it is slower than float32 (`ramify.train.optimization.product_rates`): 0.04 s
at 1 GFLOP/s, which processors without bfloat16 instructions reach at any size, instead of 2 s."""
COPIED = 64 * 2**20
"""Bytes copied: beyond every cache."""
MESSAGES = (2**10, 2**18, 2**22, 25 * 2**20, 100 * 2**20)
"""Bytes summed up over ranks: pure latency, then up to the paper's gradients, in buckets and in one piece."""
SECONDS = 0.25
"""That each measurement takes, at least."""
GLANCES = 7
"""Products in a measurement that takes turns with steps."""


def measure_limits(device: torch.device, precision: Name, ranks: int) -> dict[str, object]:
    """Of this rank, while all others measure the same; every rank must call it.

    Returns:
        `flops`: operations per second of a square matrix product, an addition and a multiplication counted as two, in
        the precision of the recipe's products; `product_size`: its rows, see the function of that name; `copied`: bytes
        per second read and written by a copy; `all_reduce`: (bytes, median seconds) of sums over all ranks, empty for
        one.
    """
    size = product_size(device, precision)
    a = _factor(size, device, precision)
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    meet = _meeting(device, ranks)
    with Precision(precision, device).products():
        product = _median(lambda: a @ a, meet, device)
    copy = _median(lambda: target.copy_(source), meet, device)
    return {
        "flops": 2 * size**3 / product,
        "product_size": size,
        "copied": 2 * COPIED / copy,
        "all_reduce": [(sent, _all_reduce(sent, device, meet)) for sent in MESSAGES] if ranks > 1 else [],
    }


def product_size(device: torch.device, precision: Name) -> int:
    """Rows and columns of the product that benchmarks measure: fewer where products of this precision are slow."""
    return SLOW_PRODUCT if precision == "bf16" and product_rates(device).bf16_is_slower else PRODUCT


def product_rate(device: torch.device, precision: Name) -> float:
    """Operations per second of the same product, on one rank, measured briefly: to take turns with something else."""
    size = product_size(device, precision)
    a = _factor(size, device, precision)
    with Precision(precision, device).products():
        times = [timed(lambda: a @ a, device) for _ in range(GLANCES + 1)][1:]
    return 2 * size**3 / sorted(times)[len(times) // 2]


def _factor(size: int, device: torch.device, precision: Name) -> torch.Tensor:
    kinds = {"fp64": torch.float64, "bf16": torch.bfloat16}
    return torch.randn(size, size, device=device).to(kinds.get(precision, torch.float32))


def _meeting(device: torch.device, ranks: int) -> Callable[[], None]:
    """Waits for the others."""

    def meet() -> None:
        if ranks > 1:
            dist.all_reduce(torch.zeros(1, device=device))

    return meet


def _median(work: Callable[[], object], meet: Callable[[], None], device: torch.device) -> float:
    """Seconds of `work`, which ranks repeat for the same time but not equally often."""
    work()
    meet()
    times: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < SECONDS or len(times) < 5:
        times.append(timed(work, device))
    return sorted(times)[len(times) // 2]


def _all_reduce(size: int, device: torch.device, meet: Callable[[], None]) -> float:
    """Seconds to sum up `size` bytes; all ranks do it equally often."""
    message = torch.ones(size // 4, device=device)
    times: list[float] = []
    for _ in range(3 if size > 2**24 else 7):
        meet()
        times.append(timed(lambda: dist.all_reduce(message), device))
    return sorted(times[1:])[len(times[1:]) // 2]


def fit_messages(measured: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Seconds per message and seconds per byte: the line through (bytes, seconds) whose largest relative error counts
    least (least squares of relative errors)."""
    weights = [1.0 / seconds for _, seconds in measured]
    ones = torch.tensor([[w, w * size] for w, (size, _) in zip(weights, measured, strict=True)], dtype=torch.float64)
    found = torch.linalg.lstsq(ones, torch.ones(len(measured), 1, dtype=torch.float64)).solution
    start, per_byte = found.flatten().tolist()
    return max(0.0, start), max(0.0, per_byte)
