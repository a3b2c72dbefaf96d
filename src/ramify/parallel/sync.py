"""Doing something on every rank such that either all go on or all stop with the same message."""

from collections.abc import Callable
from typing import Any, TypeVar

from ramify.errors import RamifyError
from ramify.parallel.world import World

T = TypeVar("T")


def on_all(ranks: World, work: Callable[[], Any]) -> list[Any]:
    """Does `work` on every rank, waits for all, and returns what each brought: plain data, see `World.gather`.

    However long `work` takes, the ranks that wait for it do not hang; it must not wait for other ranks itself.

    Raises:
        RamifyError: on every rank, naming the lowest one on which `work` failed; the error itself where it was not one
            for the user, and in a process by itself.
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
    outcomes = ranks.gather((None if failure is None else _text(failure), result))
    failed = [rank for rank, (text, _) in enumerate(outcomes) if text is not None]
    if not failed:
        return [found for _, found in outcomes]
    if failure is not None and not isinstance(failure, RamifyError | OSError):
        raise failure  # a mistake in the program: its traceback is worth more than one message
    texts = {text for text, _ in outcomes}
    others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    where = "" if len(texts) == 1 else f"rank {failed[0]} of {ranks.size}{others}: "
    told = RamifyError(f"{where}{outcomes[failed[0]][0]}")
    told.everywhere = True
    raise told from failure


def each(ranks: World, work: Callable[[], T]) -> T:
    """Does `work` on every rank, waits for all, and returns what it brought on this one. Raises as `on_all`."""
    found: list[T] = []
    on_all(ranks, lambda: found.append(work()))
    return found[0]


def on_rank_zero(ranks: World, work: Callable[[], Any]) -> Any:
    """Does `work` on rank 0 while the others wait; returns what it brought on every rank. Raises as `on_all`."""
    return on_all(ranks, lambda: work() if ranks.rank == 0 else None)[0]


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, RamifyError) else f"{type(error).__name__}: {error}"
