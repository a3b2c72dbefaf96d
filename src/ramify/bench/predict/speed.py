"""The cost model: speed of a rank and its network as a few numbers, fitted to measured cases, and resulting step times.

With s_0 seconds per step, s_b per branch with structures, s_o per operation, s_p per updated parameter, and messages of
b bytes among g ranks by `ramify.planning.costs.all_reduce_seconds`:

    compute = s_0 + s_b branches + s_o operations
    messages = sum of those of the encoder and of every hosted branch; the backward pass hides the fraction `overlap` at
               most: all on an accelerator, none on a CPU, whose cores do both
    step    = compute + messages that are not hidden + s_p parameters

An accelerator computes while the host launches further kernels, so there compute is the larger of s_0 + s_b branches
and s_o operations. All ranks wait for the slowest.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import median
from typing import Any

import torch

from ramify.bench.limits import fit_messages
from ramify.errors import RamifyError
from ramify.model.parts import branch_of_part
from ramify.planning.costs import FORWARD, all_reduce_seconds
from ramify.recipe import MachineOptions

CALIBRATION = "calibration"
"""Mode of the cases on one rank that the speed of a rank is fitted to."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Speed of one rank, in seconds.

    Attributes:
        step, branch, operation, parameter: see the module's docstring.
        asynchronous: whether it is an accelerator.
    """

    step: float
    branch: float
    operation: float
    parameter: float
    asynchronous: bool = False

    @property
    def overlap(self) -> float:
        """Fraction of the backward pass that can hide messages."""
        return 1.0 if self.asynchronous else 0.0

    def slowed(self, products: float, copies: float) -> "Speed":
        """The speed of a rank that shares its node: slower by these factors in products and in memory traffic."""
        return replace(
            self,
            step=self.step * copies,
            branch=self.branch * copies,
            operation=self.operation * products,
            parameter=self.parameter * copies,
        )


@dataclass(frozen=True, slots=True)
class Load:
    """Work of one rank in a step.

    Attributes:
        operations: floating-point operations.
        branches: number of branches with structures.
        parameters: number of parameters that it updates.
        messages: (bytes, ranks) of each all-reduce; a gather or a scatter counts as half of one.
    """

    operations: float
    branches: float
    parameters: float
    messages: tuple[tuple[float, int], ...]


def step_seconds(loads: Iterable[Load], speed: Speed, network: MachineOptions) -> float:
    """Predicted time of a step whose ranks have these loads."""
    return max(rank_seconds(load, speed, network) for load in loads)


def rank_seconds(load: Load, speed: Speed, network: MachineOptions) -> float:
    """Time of a step on one rank, see the docstring of the module."""
    launched = speed.step + speed.branch * load.branches
    work = speed.operation * load.operations
    compute = max(launched, work) if speed.asynchronous else launched + work
    messages = sum(all_reduce_seconds(size, ranks, network) for size, ranks in load.messages)
    hidden = speed.overlap * (1.0 - FORWARD) * compute
    return compute + max(0.0, messages - hidden) + speed.parameter * load.parameters


def load_of_row(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], itemsize: int) -> Load:
    """The load of a measured rank, with the other ranks of its case."""
    messages = []
    for what, size in row["traffic"].items():
        branch = branch_of_part(what)
        if branch is None:
            whole = sum(row["resident"][kind] for kind in ("weights", "gradients")) >= 2 * itemsize * row["parameters"]
            messages.append((size if whole else size / 2, len(rows)))
        else:
            hosts = sum(branch in other["branches"] for other in rows)
            messages.append((size, hosts))
    kept = row["resident"]["weights"] / itemsize
    return Load(row["operations"], row["segments"], kept, tuple(messages))


def fit_speed(cases: Sequence[Mapping[str, Any]]) -> Speed:
    """The speed of one rank alone, from cases on one rank with different operations and branches.

    Raises:
        RamifyError: there are too few of them.
    """
    alone = [case for case in cases if case["mode"] == CALIBRATION and case["ranks"] == 1]
    rows = [case["rows"][0] for case in alone]
    if len({(round(row["segments"]), case["batch"]) for row, case in zip(rows, alone, strict=True)}) < 3:
        raise RamifyError(
            "a cost model needs at least three cases on one rank, with different numbers of structures and of branches",
            fix="measure them: `ramify bench scale` with --calibrate",
        )
    times = [case["seconds"] - row["update"] for case, row in zip(alone, rows, strict=True)]
    step, branch, operation = _not_negative([[1.0, row["segments"], row["operations"]] for row in rows], times)
    parameter = median(row["update"] / row["parameters"] for row in rows)
    return Speed(step, branch, operation, parameter, not alone[0]["device"].startswith("cpu"))


def fit_network(cases: Sequence[Mapping[str, Any]]) -> MachineOptions:
    """Latency and bandwidth from the all-reduces timed with cases on the same number of ranks.

    The time of a message is that on the slowest rank, and the median over the cases, since other programs may disturb a
    single measurement.
    """
    (ranks,) = {case["ranks"] for case in cases}
    slowest = [[max(points, key=lambda p: p[1]) for points in zip(*_messages(case), strict=True)] for case in cases]
    start, per_byte = fit_messages(
        [(points[0][0], median(seconds for _, seconds in points)) for points in zip(*slowest, strict=True)]
    )
    unit = MachineOptions(latency=1.0, bandwidth=1.0)  # 1 µs, 1 GB/s: an all-reduce is linear in both inverses
    hops = all_reduce_seconds(0.0, ranks, unit) / 1e-6
    passes = (all_reduce_seconds(1e9, ranks, unit) - all_reduce_seconds(0.0, ranks, unit)) / 1.0
    return MachineOptions(latency=1e6 * start / hops, bandwidth=passes / max(per_byte, 1e-15) / 1e9)


def slowdown(ranks: int, cases: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Factors by which products and copies are slower on `ranks` ranks than on one alone; medians over the cases."""

    def rate(count: int, key: str) -> float:
        return median(min(row["limits"][key] for row in case["rows"]) for case in cases if case["ranks"] == count)

    products, copies = (rate(1, key) / rate(ranks, key) for key in ("flops", "copied"))
    return max(1.0, products), max(1.0, copies)


def _messages(case: Mapping[str, Any]) -> list[list[tuple[float, float]]]:
    return [[(size, seconds) for size, seconds in row["limits"]["all_reduce"]] for row in case["rows"]]


def _not_negative(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Non-negative least squares of relative errors: the best fit of all subsets of columns."""
    weights = torch.tensor([1.0 / value for value in values], dtype=torch.float64)
    matrix = torch.tensor(rows, dtype=torch.float64) * weights[:, None]
    columns = range(matrix.shape[1])
    scale = matrix.abs().amax(0)
    best, found = float("inf"), [0.0] * len(columns)
    for count in range(1, len(columns) + 1):
        for chosen in combinations(columns, count):
            part = matrix[:, chosen] / scale[list(chosen)]
            solved = torch.linalg.lstsq(part, torch.ones(len(values), 1, dtype=torch.float64)).solution[:, 0]
            error = float((part @ solved - 1.0).square().sum())
            if bool((solved >= 0).all()) and error < best - 1e-12:
                best, found = error, [0.0] * len(columns)
                for column, value in zip(chosen, solved.tolist(), strict=True):
                    found[column] = value / float(scale[column])
    return found
