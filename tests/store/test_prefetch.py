"""Threads that work ahead: the same results in the same order, bounded, and gone when the block ends."""

import threading
import time
from collections.abc import Iterator
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.store.prefetch import Prefetcher


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 30), st.integers(0, 2**32 - 1))
def test_results_do_not_depend_on_the_threads(workers: int, ahead: int, plans: int, seed: int) -> None:
    """With any durations of the threads."""
    pauses = np.random.default_rng(seed).exponential(0.0005, 100)

    def make(plan: int) -> int:
        time.sleep(pauses[plan])
        return plan * plan

    with Prefetcher(iter(range(plans)), make, workers=workers, ahead=ahead) as results:
        found = []
        for k, result in enumerate(results):
            time.sleep(pauses[50 + k % 50])
            found.append(result)
    assert found == [k * k for k in range(plans)]


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (1, 3), (4, 2), (3, 6)])
def test_never_more_than_a_few_are_made_ahead(workers: int, ahead: int) -> None:
    taken = 0

    def plans() -> Iterator[int]:
        nonlocal taken
        for k in count():
            taken += 1
            yield k

    with Prefetcher(plans(), lambda plan: plan, workers=workers, ahead=ahead) as results:
        for k in range(10):
            time.sleep(0.01)
            assert taken <= k + ahead
            assert next(results) == k


def test_threads_work_side_by_side() -> None:
    """Two that wait for one another."""
    both = threading.Barrier(2, timeout=10)

    def make(plan: int) -> int:
        both.wait()
        return plan

    with Prefetcher(iter(range(6)), make, workers=2, ahead=2) as results:
        assert list(results) == list(range(6))


@pytest.mark.parametrize("workers", [1, 3])
def test_errors_come_in_their_turn(workers: int) -> None:
    def make(plan: int) -> int:
        if plan in (4, 5):
            raise ValueError(f"plan {plan}")
        return plan

    with Prefetcher(count(), make, workers=workers, ahead=4) as results:
        assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
        for _ in range(2):  # and again, if asked again
            with pytest.raises(ValueError, match="plan 4"):
                next(results)


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_of_planning_comes_in_its_turn(workers: int) -> None:
    def plans() -> Iterator[int]:
        yield from range(3)
        raise OSError("no more plans")

    with Prefetcher(plans(), lambda plan: plan, workers=workers, ahead=8) as results:
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(OSError, match="no more plans"):
            next(results)


@pytest.mark.parametrize("leave", ["early", "after an error", "at once"])
def test_no_thread_stays(leave: str) -> None:
    before = threading.active_count()

    def make(plan: int) -> int:
        if leave == "after an error" and plan == 3:
            raise ValueError
        return plan

    with Prefetcher(count(), make, workers=4, ahead=3) as results:
        if leave != "at once":
            next(results)
        if leave == "after an error":
            with pytest.raises(ValueError):  # noqa: PT011
                list(results)
    assert threading.active_count() == before


def test_waiting_is_measured() -> None:
    with Prefetcher(iter(range(4)), lambda plan: time.sleep(0.05), ahead=1) as results:
        list(results)
    assert results.waited > 0.1
    with Prefetcher(iter(range(4)), lambda plan: plan, ahead=4) as results:
        for _ in results:
            time.sleep(0.05)
    assert results.waited < 0.05
