"""Prefetching by threads: results in order, with a bounded number of waiting results."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, Self, TypeVar

P = TypeVar("P")
R = TypeVar("R")


class Prefetcher(Generic[P, R]):
    """Iterates over `make(plan)` for consecutive plans, computed in advance by threads; use as a context manager.

    Plans are taken one at a time, in order; `make` must depend only on its plan, so that results do not depend on the
    number of threads. An error of a plan or of `make` is raised in place of its result. Threads end with the context.

    Args:
        plans: inputs of `make`, finite or infinite.
        make: called by several threads concurrently.
        workers: number of threads.
        ahead: maximum number of results in progress or waiting, which bounds the memory.

    Attributes:
        waited: seconds that the caller has waited for results.
    """

    def __init__(self, plans: Iterator[P], make: Callable[[P], R], *, workers: int = 1, ahead: int = 2) -> None:
        self._plans, self._make, self._ahead = plans, make, ahead
        self._planning = threading.Lock()
        self._changed = threading.Condition()
        self._planned = 0  # number of plans taken; guarded by the lock of plans
        self._wanted = 0  # number of the next result; this and the following are guarded by the condition
        self._done: dict[int, _Outcome] = {}
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._work, name=f"ramify-ahead-{k}", daemon=True) for k in range(workers)
        ]
        self.waited = 0.0

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def __iter__(self) -> Iterator[R]:
        return self

    def __next__(self) -> R:
        begun = time.perf_counter()
        with self._changed:
            while self._wanted not in self._done:
                self._changed.wait()
            outcome = self._done[self._wanted]
            if outcome.error is None:  # an error, or the end, is kept and raised again by later calls
                del self._done[self._wanted]
                self._wanted += 1
                self._changed.notify_all()
        self.waited += time.perf_counter() - begun
        if outcome.error is not None:
            raise outcome.error
        result: R = outcome.result
        return result

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            number, plan = taken
            try:
                outcome = _Outcome(result=self._make(plan))
            except Exception as error:
                outcome = _Outcome(error=error)
            del plan, taken
            self._put(number, outcome)

    def _take(self) -> tuple[int, P] | None:
        """Waits for capacity and returns the next plan with its number; None if there are no more plans."""
        with self._planning:
            number = self._planned
            with self._changed:
                while number - self._wanted >= self._ahead and not self._stopping:
                    self._changed.wait()
                if self._stopping or number in self._done:  # an outcome without a plan marks the end
                    return None
            try:
                plan = next(self._plans)
            except Exception as error:  # including StopIteration, which ends the caller's loop
                self._put(number, _Outcome(error=error))
                return None
            self._planned += 1
            return number, plan

    def _put(self, number: int, outcome: "_Outcome") -> None:
        with self._changed:
            self._done[number] = outcome
            self._changed.notify_all()


class _Outcome:
    """A result or an exception."""

    __slots__ = ("error", "result")

    def __init__(self, result: Any = None, error: Exception | None = None) -> None:
        self.result, self.error = result, error
