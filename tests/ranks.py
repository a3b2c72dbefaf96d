"""Ranks without processes: threads that gather plain data, for what needs several writers and no sums."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class Room:
    """Where the threads meet."""

    world: int
    barrier: threading.Barrier = field(init=False)
    values: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.barrier, self.values = threading.Barrier(self.world, timeout=60), [None] * self.world


@dataclass(frozen=True)
class ThreadRank:
    """One of them; has what `ramify.parallel.sync.Ranks` asks for."""

    rank: int
    room: Room

    @property
    def world(self) -> int:
        return self.room.world

    def gather(self, value: Any) -> list[Any]:
        self.room.values[self.rank] = value
        self.room.barrier.wait()
        gathered = list(self.room.values)
        self.room.barrier.wait()
        return gathered


def on_threads(world: int, work: Callable[[ThreadRank], T]) -> list[T | Exception]:
    """Does `work` as every rank at once; what each returned or raised."""
    room, outcomes = Room(world), [None] * world

    def run(rank: int) -> None:
        try:
            outcomes[rank] = work(ThreadRank(rank, room))
        except Exception as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes
