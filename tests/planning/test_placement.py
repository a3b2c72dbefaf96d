"""Placements: every branch is hosted, all of its structures are taken, and the busiest rank is as idle as it can be."""

import itertools
import math
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.errors import RamifyError
from ramify.planning.placement import TOLERANCE, Kind, Placement, balanced, explicit, per_branch, place, replicated
from ramify.recipe import Recipe, parse_recipe
from tests.small import ENTRIES

PAPER = {
    "ani1x": 4_956_005.0,
    "qm7x": 4_195_237.0,
    "mptrj": 1_580_395.0,
    "alexandria": 4.9e6,
    "transition1x": 9_644_740.0,
}
"""Structures of the paper's datasets, the order of the reference implementation."""
KINDS: tuple[Kind, ...] = ("replicated", "per-branch", "per-branch-even", "balanced")
works = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3), st.floats(1e-3, 1e6) | st.integers(1, 5), min_size=1, max_size=12
)


def largest(placement: Placement, work: dict[str, float]) -> float:
    """The busiest rank's work."""
    return max(placement.spread(work))


def check(placement: Placement, branches: list[str], ranks: int) -> None:
    """Checks the properties of every placement."""
    assert placement.ranks == ranks
    assert list(placement.hosts) == list(placement.shares) == branches
    for branch, on in placement.hosts.items():
        assert on
        assert list(on) == sorted(set(on))
        assert 0 <= on[0] <= on[-1] < ranks
        assert len(placement.shares[branch]) == len(on)
        assert all(share >= 0 for share in placement.shares[branch])
        assert math.fsum(placement.shares[branch]) == pytest.approx(1, abs=1e-12)
    for rank in range(ranks):
        assert placement.hosted(rank) == tuple(b for b in branches if rank in placement.hosts[b])
        assert placement.hosted(rank), "an idle rank"


@settings(max_examples=200)
@given(works, st.integers(1, 40), st.sampled_from(KINDS), st.randoms())
def test_every_placement(work: dict[str, float], ranks: int, kind: Kind, random: st.DataObject) -> None:
    placement = place(kind, work, ranks)
    check(placement, list(work), ranks)
    assert placement == place(kind, work, ranks)
    shuffled = list(work.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again = place(kind, dict(shuffled), ranks)
    assert again.hosts == placement.hosts  # equal as mappings: the order of a recipe's branches moves nothing
    assert again.shares == placement.shares
    assert largest(placement, work) >= sum(work.values()) / ranks * (1 - 1e-9)


@settings(max_examples=200)
@given(works, st.integers(1, 40))
def test_the_busiest_rank_is_bounded(work: dict[str, float], ranks: int) -> None:
    total, mean = sum(work.values()), sum(work.values()) / ranks
    assert largest(replicated(list(work), ranks), work) == pytest.approx(mean)
    assert largest(balanced(work, ranks), work) <= (1 + TOLERANCE) * mean * (1 + 1e-9)
    apart = largest(per_branch(work, ranks), work)
    if ranks >= len(work):
        assert apart <= total / (ranks - len(work) + 1) * (1 + 1e-9)
    else:  # list scheduling: mean of the others plus the last branch placed
        assert apart <= (mean + (1 - 1 / ranks) * max(work.values())) * (1 + 1e-9)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=5), st.integers(1, 9))
def test_against_all_possible_groups(amounts: list[float], ranks: int) -> None:
    """Groups by work are optimal; whole branches on few ranks within Graham's bound of the optimum."""
    work = {f"b{k}": amount for k, amount in enumerate(amounts)}
    found = largest(per_branch(work, ranks), work)
    if ranks >= len(work):
        best = min(max(w / n for w, n in zip(amounts, sizes, strict=True)) for sizes in compositions(ranks, len(work)))
        assert found == pytest.approx(best)
    else:
        best = min(
            max(sum(w for w, r in zip(amounts, on, strict=True) if r == rank) for rank in range(ranks))
            for on in itertools.product(range(ranks), repeat=len(amounts))
        )
        assert found <= (4 / 3 - 1 / (3 * ranks)) * best * (1 + 1e-9)


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write `total` as a sum of `parts` numbers above 0."""
    for cuts in itertools.combinations(range(1, total), parts - 1):
        yield tuple(b - a for a, b in itertools.pairwise((0, *cuts, total)))


@given(works, st.integers(1, 40))
def test_balanced_hosts_few(work: dict[str, float], ranks: int) -> None:
    """Fewer pairs of a branch and its host than branches + ranks, and no slivers."""
    placement = balanced(work, ranks)
    assert sum(map(len, placement.hosts.values())) < len(work) + ranks
    mean = sum(work.values()) / ranks
    for branch, shares in placement.shares.items():
        if len(shares) > 1:
            assert min(shares) * work[branch] >= 0.5 * TOLERANCE * mean * (1 - 1e-9)


@pytest.mark.parametrize("ranks", [6, 8, 12, 17, 100])
def test_where_proportional_groups_went_wrong(ranks: int) -> None:
    """Rounding up and taking the surplus from the largest leaves a dataset without ranks (6) or the largest with least
    (8); here each has one, and a larger dataset never has fewer."""
    sizes = {branch: len(on) for branch, on in per_branch(PAPER, ranks).hosts.items()}
    assert sum(sizes.values()) == ranks
    assert min(sizes.values()) >= 1
    ordered = sorted(PAPER, key=PAPER.__getitem__)
    assert [sizes[branch] for branch in ordered] == sorted(sizes.values())
    if ranks == 6:
        assert sizes == {"ani1x": 1, "qm7x": 1, "mptrj": 1, "alexandria": 1, "transition1x": 2}
    if ranks == 8:
        assert sizes == {"ani1x": 2, "qm7x": 1, "mptrj": 1, "alexandria": 2, "transition1x": 2}


def test_largest_remainders_would_be_slower() -> None:
    """Why groups are not rounded by largest remainders: 10.6 and 1.4 of 12 ranks would become 11 and 1."""
    work = {"large": 10.6, "small": 1.4}
    placement = per_branch(work, 12)
    assert {branch: len(on) for branch, on in placement.hosts.items()} == {"large": 10, "small": 2}
    assert largest(placement, work) == pytest.approx(1.06)


def test_kinds_by_example() -> None:
    work = {"a": 4.0, "b": 2.0, "c": 1.0}
    assert per_branch(work, 7).hosts == {"a": (0, 1, 2, 3), "b": (4, 5), "c": (6,)}
    assert per_branch(work, 7, even=True).hosts == {"a": (0, 1, 2), "b": (3, 4), "c": (5, 6)}
    assert per_branch(work, 6, even=True).hosts == {"a": (0, 1), "b": (2, 3), "c": (4, 5)}
    assert per_branch(work, 2).hosts == {"a": (0,), "b": (1,), "c": (1,)}
    assert per_branch(work, 2, even=True).hosts == {"a": (0,), "b": (0,), "c": (1,)}
    assert replicated(list(work), 2).hosts == {"a": (0, 1), "b": (0, 1), "c": (0, 1)}
    assert replicated(list(work), 2).shares["a"] == (0.5, 0.5)
    split = balanced({"a": 10.0, "b": 1.0, "c": 1.0}, 2)
    assert split.hosts == {"a": (0, 1), "b": (1,), "c": (1,)}
    assert split.shares["a"] == pytest.approx((0.6, 0.4))
    assert balanced({"a": 2.0, "b": 1.0, "c": 1.02}, 2).hosts == {"a": (0,), "b": (1,), "c": (1,)}


def test_alone() -> None:
    placement = Placement.alone(["b", "a"])
    check(placement, ["b", "a"], 1)
    assert placement.hosted(0) == ("b", "a")
    assert placement.shares == {"b": (1.0,), "a": (1.0,)}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_explicit_hosts_share_as_evenly_as_they_can(data: st.DataObject) -> None:
    """The busiest rank has no more to do than the most crowded set of branches forces: the largest, over sets of
    ranks, of the work that only they can do, divided by their number (max-flow, min-cut)."""
    ranks = data.draw(st.integers(1, 5))
    on = st.lists(st.integers(0, ranks - 1), min_size=1, max_size=ranks, unique=True)
    hosts = data.draw(st.lists(on, min_size=1, max_size=5))
    hosts = [*hosts, sorted(set(range(ranks)) - set(itertools.chain(*hosts))) or [0]]
    work = {f"b{k}": data.draw(st.floats(0.1, 10)) for k in range(len(hosts))}
    placement = explicit(dict(zip(work, hosts, strict=True)), work, ranks)
    check(placement, list(work), ranks)
    assert placement.hosts == {branch: tuple(sorted(h)) for branch, h in zip(work, hosts, strict=True)}
    forced = max(
        sum(w for w, h in zip(work.values(), hosts, strict=True) if set(h) <= set(chosen)) / len(chosen)
        for count in range(1, ranks + 1)
        for chosen in itertools.combinations(range(ranks), count)
    )
    assert largest(placement, work) == pytest.approx(forced, rel=1e-6)


def test_explicit_by_example() -> None:
    """Two branches on rank 1: the one with less work gets more of it."""
    placement = explicit({"a": [1, 0], "b": [1, 2]}, {"a": 2.0, "b": 1.0}, 3)
    assert placement.kind == "explicit"
    assert placement.hosts == {"a": (0, 1), "b": (1, 2)}
    assert placement.shares["a"] == pytest.approx((0.5, 0.5))
    assert placement.shares["b"] == pytest.approx((0.0, 1.0))


def test_ranks_that_cannot_be() -> None:
    with pytest.raises(RamifyError, match=r"names rank 4, but this run has ranks 0 to 2\n  fix: start 5 processes"):
        explicit({"a": [0, 4], "b": [1, 2]}, {"a": 1.0, "b": 1.0}, 3)
    with pytest.raises(RamifyError, match="rank 0, 2 of 3 hosts no branch"):
        explicit({"a": [1], "b": [1]}, {"a": 1.0, "b": 1.0}, 3)
    with pytest.raises(RamifyError, match="0 ranks: a run needs at least 1"):
        per_branch({"a": 1.0}, 0)
    with pytest.raises(ValueError, match="does not give ranks to each of a, b"):
        explicit({"a": [0]}, {"a": 1.0, "b": 1.0}, 1)
    with pytest.raises(ValueError, match="wrong for b"):
        balanced({"a": 1.0, "b": 0.0}, 2)


def recipe(**parallel: object) -> Recipe:
    """Two branches, with keys of `parallel`."""
    datasets = {name: ENTRIES[name] for name in ("qm7x", "mptrj")}
    return parse_recipe({"datasets": datasets, "parallel": parallel}, "my.yaml")


def test_a_recipe_names_ranks_of_its_branches() -> None:
    assert recipe(placement={"qm7x": [0], "mptrj": [0, 1]}).parallel.placement == {"qm7x": [0], "mptrj": [0, 1]}
    for placement, message in (
        ({"qm7": [0], "mptrj": [1]}, "no branch is called 'qm7', did you mean 'qm7x'?; branches: qm7x, mptrj"),
        ({"qm7x": [0]}, "parallel.placement: no rank hosts mptrj"),
        ({"qm7x": [0], "mptrj": []}, "parallel.placement: no rank hosts mptrj"),
        ({"qm7x": [0], "mptrj": [1, 1]}, "a rank occurs twice in mptrj"),
        ({"qm7x": [0], "mptrj": [-1]}, "greater than or equal to 0, found -1"),
        ("scattered", "'auto', 'replicated', 'per-branch', 'per-branch-even' or 'balanced'"),
    ):
        with pytest.raises(RamifyError) as caught:
            recipe(placement=placement)
        assert message in str(caught.value)
