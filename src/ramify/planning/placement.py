"""Placements: the ranks that host each branch, and the fraction of its structures that each of them processes.

Pure functions of plain numbers, without PyTorch. Every process computes the same placement from the same recipe and
stores, so it needs no communication. A placement affects the results of a run only by rounding.

`work` is the cost of one step by branch, in any unit; only ratios matter. Ranks are assigned in the order of the names
of the branches, so that a placement does not depend on their order in the recipe.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ramify.errors import RamifyError

TOLERANCE = 0.05
"""Largest excess of the load of the busiest rank over the mean in `balanced`, relative to the mean. It avoids very
small fractions of a branch, for each of which one more rank would host and all-reduce that branch."""

SWEEPS = 1000
"""Largest number of iterations for the shares of an overlapping explicit placement."""

Kind = Literal["replicated", "per-branch", "per-branch-even", "balanced"]


@dataclass(frozen=True)
class Placement:
    """The hosts of all branches; `hosts` and `shares` contain every branch, in the order of the recipe.

    The encoder is not included: every rank hosts it.

    Attributes:
        kind: `replicated`, `per-branch`, `per-branch-even`, `balanced` or `explicit`; with the prefix `auto:` if auto
            chose it.
        ranks: number of ranks.
        hosts: by branch, the ranks that host it, ascending, never empty.
        shares: by branch, the fraction of its structures on each of those ranks; they add up to 1.
        reason: explanation of the choice.
    """

    kind: str
    ranks: int
    hosts: dict[str, tuple[int, ...]]
    shares: dict[str, tuple[float, ...]]
    reason: str

    def hosted(self, rank: int) -> tuple[str, ...]:
        """The branches that `rank` hosts, in the order of the recipe."""
        return tuple(branch for branch, ranks in self.hosts.items() if rank in ranks)

    def spread(self, amounts: Mapping[str, float]) -> tuple[float, ...]:
        """Distributes an amount per branch, e.g. its structures of one step, over the ranks."""
        of_rank = [0.0] * self.ranks
        for branch, ranks in self.hosts.items():
            for rank, share in zip(ranks, self.shares[branch], strict=True):
                of_rank[rank] += share * amounts[branch]
        return tuple(of_rank)

    def imbalance(self, work: Mapping[str, float]) -> float:
        """Relative excess of the load of the busiest rank over the mean: max / mean - 1."""
        loads = self.spread(work)
        return max(0.0, max(loads) * len(loads) / sum(loads) - 1.0)

    @classmethod
    def alone(cls, branches: Sequence[str]) -> "Placement":
        """One process that hosts every branch."""
        return replicated(branches, 1)


def replicated(branches: Sequence[str], ranks: int) -> Placement:
    """Every rank hosts every branch with an equal fraction of its structures (the paper's MTL-base)."""
    all_ranks = tuple(range(_at_least_one(ranks)))
    reason = f"{_count(ranks, 'rank')} with {_count(len(branches), 'branch', 'branches')} each"
    return _equal("replicated", ranks, dict.fromkeys(branches, all_ranks), reason)


def per_branch(work: Mapping[str, float], ranks: int, *, even: bool = False) -> Placement:
    """Separate ranks for every branch, or several whole branches on a rank (the paper's MTL-par).

    With at least as many ranks as branches, a rank hosts one branch. The sizes of groups minimise the largest work of a
    rank (each next rank is added to the branch with most work per rank, which is optimal); it is at most
    ranks / (ranks - branches + 1) times the mean. With `even`, groups are equal, as in the paper; if the number of
    ranks is not a multiple of the number of branches, the branches with most work get one more.

    With fewer ranks, branches are not divided: in order of decreasing work, each is assigned to the rank with least
    work (Graham, SIAM J. Appl. Math. 17, 416 (1969): within 4/3 - 1/(3 ranks) of the optimum). With `even`, ranks have
    equal numbers of branches.
    """
    _check(work, ranks)
    kind = "per-branch-even" if even else "per-branch"
    names = sorted(work)
    if ranks < len(work):
        host = _equal_numbers(names, ranks) if even else _largest_first(work, ranks)
        found: dict[str, tuple[int, ...]] = {branch: (host[branch],) for branch in work}
        return _equal(kind, ranks, found, f"{len(work)} whole branches on {_count(ranks, 'rank')}")
    sizes = _equal_groups(work, ranks) if even else _level_groups(work, ranks)
    hosts, first = {}, 0
    for branch in names:
        hosts[branch] = tuple(range(first, first + sizes[branch]))
        first += sizes[branch]
    how = "equal groups" if even else "groups by work"
    return _equal(kind, ranks, {branch: hosts[branch] for branch in work}, f"each rank hosts one branch, {how}")


def balanced(work: Mapping[str, float], ranks: int) -> Placement:
    """Equal work on every rank, within `TOLERANCE`, with few branches per rank.

    The branches form one line, which is cut into equal parts (McNaughton, Management Science 6, 1 (1959)); a cut close
    to the end of a branch is moved there. So the number of (branch, host) pairs is below branches + ranks. If
    `per_branch` is within the tolerance, it is used.
    """
    _check(work, ranks)
    apart = per_branch(work, ranks)
    if apart.imbalance(work) <= TOLERANCE:
        return Placement("balanced", ranks, apart.hosts, apart.shares, apart.reason)
    names = sorted(work)
    ends = [math.fsum(work[name] for name in names[: k + 1]) for k in range(len(names))]
    part = ends[-1] / ranks
    cuts = [0.0, *(_snapped(k * part, ends, 0.5 * TOLERANCE * part) for k in range(1, ranks)), ends[-1]]
    hosts, shares = {}, {}
    for name, (start, end) in zip(names, pairwise([0.0, *ends]), strict=True):
        lengths = {r: (min(end, cuts[r + 1]) - max(start, cuts[r])) / part for r in range(ranks)}
        # rounded, so that all ranks with a full part of a branch have exactly equal shares
        rounded = {rank: round(length, 12) for rank, length in lengths.items() if length > 0}
        hosts[name] = tuple(rounded)
        shares[name] = _normalised(list(rounded.values()))
    cut = sum(len(h) > 1 for h in hosts.values())
    reason = f"equal work on every rank; {_count(cut, 'branch is', 'branches are')} shared by several"
    return Placement("balanced", ranks, {b: hosts[b] for b in work}, {b: shares[b] for b in work}, reason)


def explicit(hosts: Mapping[str, Sequence[int]], work: Mapping[str, float], ranks: int) -> Placement:
    """Hosts from the recipe, with the shares that balance the work of the ranks best.

    Raises:
        RamifyError: a rank does not exist, or has no branch.
    """
    _check(work, ranks)
    if hosts.keys() != work.keys() or not all(hosts.values()):
        raise ValueError(f"{dict(hosts)} does not give ranks to each of {', '.join(work)}")
    named = {rank for on in hosts.values() for rank in on}
    if beyond := sorted(rank for rank in named if rank >= ranks):
        raise RamifyError(
            f"parallel.placement names rank {', '.join(map(str, beyond))}, but this run has ranks 0 to {ranks - 1}",
            fix=f"start {beyond[-1] + 1} processes, or name lower ranks",
        )
    if idle := sorted(set(range(ranks)) - named):
        raise RamifyError(
            f"parallel.placement: rank {', '.join(map(str, idle))} of {ranks} hosts no branch",
            fix="give every rank a branch, or start fewer processes",
        )
    on = {branch: tuple(sorted(hosts[branch])) for branch in work}
    return Placement("explicit", ranks, on, _levelled(work, on, ranks), "hosts as the recipe names them")


def place(kind: Kind | Mapping[str, Sequence[int]], work: Mapping[str, float], ranks: int) -> Placement:
    """The placement for a value of `parallel.placement` other than `auto`."""
    if not isinstance(kind, str):
        return explicit(kind, work, ranks)
    if kind == "replicated":
        return replicated(list(work), ranks)
    if kind == "balanced":
        return balanced(work, ranks)
    return per_branch(work, ranks, even=kind == "per-branch-even")


def _equal(kind: str, ranks: int, hosts: dict[str, tuple[int, ...]], reason: str) -> Placement:
    shares = {branch: (1.0 / len(on),) * len(on) for branch, on in hosts.items()}
    return Placement(kind, ranks, hosts, shares, reason)


def _heaviest_first(work: Mapping[str, float]) -> list[str]:
    return sorted(work, key=lambda branch: (-work[branch], branch))


def _largest_first(work: Mapping[str, float], ranks: int) -> dict[str, int]:
    """The rank of each branch."""
    loads, host = [0.0] * ranks, {}
    for branch in _heaviest_first(work):
        host[branch] = loads.index(min(loads))
        loads[host[branch]] += work[branch]
    return host


def _equal_numbers(names: Sequence[str], ranks: int) -> dict[str, int]:
    return {branch: index * ranks // len(names) for index, branch in enumerate(names)}


def _level_groups(work: Mapping[str, float], ranks: int) -> dict[str, int]:
    """Number of ranks of each branch that minimises the largest work / ranks."""
    sizes, order = dict.fromkeys(work, 1), _heaviest_first(work)
    for _ in range(ranks - len(work)):
        slowest = max(order, key=lambda branch: work[branch] / sizes[branch])  # the first of equals
        sizes[slowest] += 1
    return sizes


def _equal_groups(work: Mapping[str, float], ranks: int) -> dict[str, int]:
    size, left = divmod(ranks, len(work))
    return {branch: size + (index < left) for index, branch in enumerate(_heaviest_first(work))}


def _snapped(cut: float, ends: Sequence[float], tolerance: float) -> float:
    """The end of a branch if one lies within `tolerance` of the cut, else the cut."""
    end = min(ends, key=lambda e: abs(e - cut))
    return end if abs(end - cut) <= tolerance else cut


def _levelled(
    work: Mapping[str, float], hosts: Mapping[str, Sequence[int]], ranks: int
) -> dict[str, tuple[float, ...]]:
    """Shares that balance the loads of the ranks: redistributes the work of each branch over its hosts (water filling)
    until convergence. Each update lowers the sum of squared loads, whose minimum also minimises the largest load."""
    amounts = {branch: [work[branch] / len(on)] * len(on) for branch, on in hosts.items()}
    loads = [0.0] * ranks
    for branch, on in hosts.items():
        for rank, amount in zip(on, amounts[branch], strict=True):
            loads[rank] += amount
    for _ in range(SWEEPS):
        moved = 0.0
        for branch in sorted(hosts):
            others = [loads[rank] - amount for rank, amount in zip(hosts[branch], amounts[branch], strict=True)]
            updated = _fill(work[branch], others)
            for rank, before, after in zip(hosts[branch], amounts[branch], updated, strict=True):
                loads[rank] += after - before
                moved = max(moved, abs(after - before))
            amounts[branch] = updated
        if moved <= 1e-12 * sum(work.values()):
            break
    return {branch: _normalised(amounts[branch]) for branch in hosts}


def _fill(amount: float, floors: Sequence[float]) -> list[float]:
    """Water filling: distributes `amount` over `floors` so that all parts above 0 reach the same level."""
    level, below = 0.0, 0.0
    for count, floor in enumerate(sorted(floors), start=1):
        below += floor
        level = (amount + below) / count
        if count == len(floors) or level <= sorted(floors)[count]:
            break
    return [max(0.0, level - floor) for floor in floors]


def _normalised(parts: Sequence[float]) -> tuple[float, ...]:
    total = math.fsum(parts)
    return tuple(part / total for part in parts)


def _check(work: Mapping[str, float], ranks: int) -> None:
    _at_least_one(ranks)
    if wrong := [branch for branch, amount in work.items() if not 0 < amount < math.inf]:
        raise ValueError(f"the work of a branch is a number above 0; wrong for {', '.join(wrong)}")


def _at_least_one(ranks: int) -> int:
    if ranks < 1:
        raise RamifyError(f"{ranks} ranks: a run needs at least 1")
    return ranks


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
