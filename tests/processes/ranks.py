"""Ranks as threads that gather plain data, for tests with several writers and without sums."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ramify.parallel.world import World

T = TypeVar("T")


@dataclass
class Room:
    """Data exchanged by the threads."""

    world: int
    barrier: threading.Barrier = field(init=False)
    values: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.barrier, self.values = threading.Barrier(self.world, timeout=60), [None] * self.world


@dataclass(frozen=True, eq=False, kw_only=True)
class ThreadRank(World):
    """One of them."""

    room: Room

    def gather_bytes(self, content: bytes) -> list[bytes]:
        self.room.values[self.rank] = content
        self.room.barrier.wait()
        gathered = list(self.room.values)
        self.room.barrier.wait()
        return gathered


def on_threads(world: int, work: Callable[[ThreadRank], T]) -> list[T | Exception]:
    """Calls `work` on all ranks at once; returns the result or the exception of each."""
    room, outcomes = Room(world), [None] * world

    def run(rank: int) -> None:
        try:
            outcomes[rank] = work(ThreadRank(rank=rank, size=world, room=room))
        except Exception as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes
