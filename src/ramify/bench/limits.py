"""Limits of the machine, measured on all ranks at once: matrix products, copies, all-reduces.

Benchmark results are compared with them, and `ramify.bench.predict.speed` fits the speed of the network to them. Ranks
on one node share its memory and its links, so all ranks measure at the same time, as in a training step.
"""

import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from ramify.train.optimization.precision import Name, Precision
from ramify.train.optimization.product_rates import product_rates, timed

PRODUCT = 1024
"""Rows and columns of the matrix product: similar to the sizes in the model, and several times larger than caches."""
SLOW_PRODUCT = 256
"""Rows and columns in bfloat16 on a device where it is slower than float32 (`ramify.train.optimization.product_rates`):
0.04 s at 1 GFLOP/s, the rate of processors without bfloat16 instructions, instead of 2 s."""
COPIED = 64 * 2**20
"""Bytes copied: more than any cache holds."""
MESSAGES = (2**10, 2**18, 2**22, 25 * 2**20, 100 * 2**20)
"""Bytes of the all-reduces: from pure latency to the gradients of the paper's model, in buckets and as a whole."""
SECONDS = 0.25
"""Minimum duration of a measurement in seconds."""
GLANCES = 7
"""Number of products in a measurement that alternates with steps."""


def measure_limits(device: torch.device, precision: Name, ranks: int) -> dict[str, object]:
    """The limits of this rank, measured on all ranks at the same time; every rank must call it.

    Returns:
        `flops`: operations per second of a square matrix product, an addition and a multiplication counted as two, in
        the precision of the recipe's products; `product_size`: number of its rows, see `product_size`; `copied`: bytes
        per second read and written by a copy; `all_reduce`: (bytes, median seconds) of all-reduces over all ranks,
        empty for one rank.
    """
    size = product_size(device, precision)
    a = _factor(size, device, precision)
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    barrier = _barrier(device, ranks)
    with Precision(precision, device).products():
        product = _median(lambda: a @ a, barrier, device)
    copy = _median(lambda: target.copy_(source), barrier, device)
    return {
        "flops": 2 * size**3 / product,
        "product_size": size,
        "copied": 2 * COPIED / copy,
        "all_reduce": [(sent, _all_reduce(sent, device, barrier)) for sent in MESSAGES] if ranks > 1 else [],
    }


def product_size(device: torch.device, precision: Name) -> int:
    """Rows and columns of the matrix product in benchmarks: fewer if products of this precision are slow."""
    return SLOW_PRODUCT if precision == "bf16" and product_rates(device).bf16_is_slower else PRODUCT


def product_rate(device: torch.device, precision: Name) -> float:
    """Operations per second of the same product on one rank, measured briefly, to alternate with steps."""
    size = product_size(device, precision)
    a = _factor(size, device, precision)
    with Precision(precision, device).products():
        times = [timed(lambda: a @ a, device) for _ in range(GLANCES + 1)][1:]
    return 2 * size**3 / sorted(times)[len(times) // 2]


def _factor(size: int, device: torch.device, precision: Name) -> torch.Tensor:
    kinds = {"fp64": torch.float64, "bf16": torch.bfloat16}
    return torch.randn(size, size, device=device).to(kinds.get(precision, torch.float32))


def _barrier(device: torch.device, ranks: int) -> Callable[[], None]:
    """Returns a function that waits for all ranks."""

    def barrier() -> None:
        if ranks > 1:
            dist.all_reduce(torch.zeros(1, device=device))

    return barrier


def _median(work: Callable[[], object], barrier: Callable[[], None], device: torch.device) -> float:
    """Median seconds of `work`, which ranks repeat for the same time but not equally often."""
    work()
    barrier()
    times: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < SECONDS or len(times) < 5:
        times.append(timed(work, device))
    return sorted(times)[len(times) // 2]


def _all_reduce(size: int, device: torch.device, barrier: Callable[[], None]) -> float:
    """Median seconds of an all-reduce of `size` bytes; all ranks repeat it equally often."""
    message = torch.ones(size // 4, device=device)
    times: list[float] = []
    for _ in range(3 if size > 2**24 else 7):
        barrier()
        times.append(timed(lambda: dist.all_reduce(message), device))
    return sorted(times[1:])[len(times[1:]) // 2]


def fit_messages(measured: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Seconds per message and seconds per byte: a line fitted to (bytes, seconds) by least squares of relative
    errors."""
    weights = [1.0 / seconds for _, seconds in measured]
    ones = torch.tensor([[w, w * size] for w, (size, _) in zip(weights, measured, strict=True)], dtype=torch.float64)
    found = torch.linalg.lstsq(ones, torch.ones(len(measured), 1, dtype=torch.float64)).solution
    start, per_byte = found.flatten().tolist()
    return max(0.0, start), max(0.0, per_byte)
