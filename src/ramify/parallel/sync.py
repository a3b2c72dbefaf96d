"""Doing something on every rank such that either all go on or all stop with the same message."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch.distributed as dist

from ramify.errors import RamifyError

T = TypeVar("T")


class Ranks(Protocol):
    """The processes of a run, as seen by one of them; a `Layout` is one.

    Attributes:
        rank: this process, from 0.
        world: how many there are.
    """

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    def gather(self, value: Any) -> list[Any]:
        """`value` (small plain data) of every rank, on every rank."""
        ...


class SingleProcess:
    """One process by itself."""

    rank, world = 0, 1

    def gather(self, value: Any) -> list[Any]:
        """What it was given."""
        return [value]


@dataclass(frozen=True, slots=True)
class ConnectedRanks:
    """The processes that have met (`ramify.parallel.rendezvous.joined`), before anyone knows what they host."""

    rank: int
    world: int

    def gather(self, value: Any) -> list[Any]:
        """What every rank brought, on all ranks."""
        gathered = [None] * self.world
        dist.all_gather_object(gathered, value)
        return gathered


def on_all(ranks: Ranks, work: Callable[[], T]) -> list[T]:
    """Does `work` on every rank, waits for all, and returns what each brought (small plain data).

    Raises:
        RamifyError: on every rank, naming the lowest one on which `work` failed; the error itself where it was not one
            for the user, and in a process by itself.
    """
    result: T | None = None
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:
        failure = error
    if ranks.world == 1 and failure is not None:
        raise failure
    outcomes = ranks.gather((None if failure is None else _text(failure), result))
    failed = [rank for rank, (text, _) in enumerate(outcomes) if text is not None]
    if not failed:
        return [found for _, found in outcomes]
    if failure is not None and not isinstance(failure, RamifyError | OSError):
        raise failure  # a mistake in the program: its traceback is worth more than one message
    texts = {text for text, _ in outcomes}
    others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    where = "" if len(texts) == 1 else f"rank {failed[0]} of {ranks.world}{others}: "
    told = RamifyError(f"{where}{outcomes[failed[0]][0]}")
    told.everywhere = True
    raise told from failure


def each(ranks: Ranks, work: Callable[[], T]) -> T:
    """Does `work` on every rank, waits for all, and returns what it brought on this one. Raises as `on_all`."""
    found: list[T] = []
    on_all(ranks, lambda: found.append(work()))
    return found[0]


def on_rank_zero(ranks: Ranks, work: Callable[[], T]) -> T:
    """Does `work` on rank 0 while the others wait; returns what it brought on every rank. Raises as `on_all`."""
    found: T = on_all(ranks, lambda: work() if ranks.rank == 0 else None)[0]  # type: ignore[assignment]
    return found


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, RamifyError) else f"{type(error).__name__}: {error}"
