"""Calls on every rank that either succeed on all ranks or fail on all ranks with the same message."""

from collections.abc import Callable
from typing import Any, TypeVar

from ramify.errors import RamifyError, error_text
from ramify.parallel.world import World

T = TypeVar("T")


def on_all(ranks: World, work: Callable[[], Any]) -> list[Any]:
    """Calls `work` on every rank, waits for all, and returns the results of all ranks: plain data, see `World.gather`.

    The watchdog does not count the wait as a hang, however long `work` takes; `work` must not wait for other ranks.

    Raises:
        RamifyError: on every rank, naming the lowest rank on which `work` failed. An error that is not for users, and
            an error in a single process, is raised unchanged.
    """
    result: Any = None
    failure: Exception | None = None
    try:
        with ranks.watchdog.working():
            result = work()
    except Exception as error:
        failure = error
    if ranks.size == 1 and failure is not None:
        raise failure
    outcomes = ranks.gather((None if failure is None else error_text(failure), result))
    failed = [rank for rank, (text, _) in enumerate(outcomes) if text is not None]
    if not failed:
        return [found for _, found in outcomes]
    if failure is not None and not isinstance(failure, RamifyError | OSError):
        raise failure  # a bug in the program: its traceback is more useful than one message
    texts = {text for text, _ in outcomes}
    others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    where = "" if len(texts) == 1 else f"rank {failed[0]} of {ranks.size}{others}: "
    shared = RamifyError(f"{where}{outcomes[failed[0]][0]}")
    shared.everywhere = True
    raise shared from failure


def each(ranks: World, work: Callable[[], T]) -> T:
    """Calls `work` on every rank, waits for all, and returns the result of this rank. Raises as `on_all`."""
    found: list[T] = []
    on_all(ranks, lambda: found.append(work()))
    return found[0]


def on_rank_zero(ranks: World, work: Callable[[], Any]) -> Any:
    """Calls `work` on rank zero while the others wait; returns its result on every rank. Raises as `on_all`."""
    return on_all(ranks, lambda: work() if ranks.rank == 0 else None)[0]
