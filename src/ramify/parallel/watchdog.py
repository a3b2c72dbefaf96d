"""Ends a run whose ranks wait for one another in vain, with a message that names who did not come, and where.

Collectives wait in silence: when one rank hangs, all others hang in their next sum. So a thread beside each rank tells
the others, through the store that the ranks met at, that the rank is alive, where it is, and whether it works. A rank

- is *waiting* in a collective for the others: it works only as far as its device still computes its own part;
- is *working* by itself: it reads, writes, compiles, waits for a lock. However long that takes, it is not hung;
- or else computes, which is seen from the processor time it uses (`ramify.parallel.activity`).

When no rank has worked for `timeout` seconds, the run is hung, and those that have come least far are those that the
others wait for. A rank whose thread has been silent for `timeout` seconds while another waits is frozen, or gone with
its node. A rank that works is never ended, however slow; after `timeout` seconds the first rank says who it is.
"""

import contextlib
import json
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self, TextIO

from torch.distributed.distributed_c10d import Store

from ramify.parallel.activity import ThreadActivity

HUNG = 70
"""Exit status of a hung run: EX_SOFTWARE of BSD's sysexits.h. Unlike `STOPPED` nothing a scheduler should requeue on
without a thought: what hung once may hang again."""
POLLS = 8
"""How often a rank looks at the others within one timeout: hung ranks are found at most 1 / 8 late."""
POLL = 5.0
"""Seconds between looks, at most: how old what is known of a rank may be that has stopped without a word. Four short
messages a rank each time are little for the store, 1600 a second with 2,000 ranks."""
NAMED = 8
"""The most ranks that are named one by one."""
GRACE = 2.0
"""Seconds that ranks wait before they go, so that the one that speaks for all has finished its message."""

MOVE, OVER = 2**24, 2**62
"""What is added to the counter that all ranks share: 1 for a rank that works, `MOVE` for one that has come to another
place or has done a piece of its work, `OVER` by the rank that has found out that the run is over."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a rank.

    Attributes:
        stage: how many places it has come by; -1: it has never said anything.
        place: the last one.
        is_waiting: for other ranks.
        ticks: how often it has said so.
    """

    stage: int = -1
    place: str = "nothing"
    is_waiting: bool = False
    ticks: int = -1


@dataclass
class _Idle:
    """Seconds: until the next note is due; since any rank worked; since any moved; since the next rank was heard."""

    told: float
    quiet: float = 0.0
    unmoved: float = 0.0
    silent: float = 0.0


class Watchdog:
    """Watches this rank from `with` to its end.

    Args:
        rank, world: of this process.
        store: that all ranks know; None for a process by itself, which waits for nobody. A connection of its own:
            one that the watched thread is waiting at would keep the watchdog waiting too.
        timeout: seconds.
        end: what ends the process; tests put something else here.
        out: where messages go.

    Attributes:
        place: where this rank is, as it was last told.
    """

    def __init__(
        self,
        rank: int = 0,
        world: int = 1,
        store: Store | None = None,
        timeout: float = math.inf,
        *,
        end: Callable[[int], None] = os._exit,  # a thread that is stuck in a collective heeds no exception
        out: TextIO | None = None,
    ) -> None:
        self._rank, self._world, self._store, self._timeout = rank, world, store, timeout
        self._poll = min(timeout / POLLS, POLL)
        self._end, self._out = end, out or sys.stderr
        self.place = "the start"
        self._stage, self._moves, self._busy = 0, 0, 0
        self._is_waiting = False
        self._works: Callable[[], bool] | None = None  # None: it computes, if it uses a processor
        self._count, self._heard, self._talks = 0, -1, 0  # the shared counter; the next rank's ticks; messages sent
        self._known, self._idle = (0, 0, -1, 0), _Idle(timeout)
        self._watched = 0
        self._done = threading.Event()
        self._threads = [
            threading.Thread(target=work, name="ramify-watchdog", daemon=True) for work in (self._talk, self._watch)
        ]

    def arrive(self, place: str) -> None:
        """This rank has come to `place`, e.g. `step 12`; all ranks come by the same places in the same order."""
        self._stage, self.place = self._stage + 1, place
        self.beat()

    def beat(self) -> None:
        """This rank has done a piece of its work. Costs nothing: the thread tells the others now and then."""
        self._moves += 1

    @contextmanager
    def working(self) -> Iterator[None]:
        """Inside, this rank works by itself, however long it takes and whatever it waits for, but for other ranks."""
        with self._during(lambda: True, is_waiting=False):
            yield

    @contextmanager
    def waiting(self, computes: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Inside, this rank has done its part where it is and waits for the others to do theirs; all ranks come here.

        Args:
            computes: whether its device is still at its own part, of which the host has seen the end.
        """
        self.arrive(self.place)
        with self._during(computes, is_waiting=True):
            yield

    @contextmanager
    def _during(self, works: Callable[[], bool], *, is_waiting: bool) -> Iterator[None]:
        before = self._works, self._is_waiting
        self._works, self._is_waiting = works, is_waiting
        try:
            yield
        finally:
            self._works, self._is_waiting = before
            self.beat()

    def __enter__(self) -> Self:
        if self._store is not None:
            self._watched, self._activity = threading.get_ident(), ThreadActivity()
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._store is not None:
            self._threads[1].join()  # not the one that talks: it may wait for a store that is gone

    def _talk(self) -> None:
        """Tells the others about this rank, and notes what they tell: this thread may be kept waiting by the store."""
        assert self._store is not None
        told = -1, -1
        while not self._done.is_set():
            with contextlib.suppress(RuntimeError):  # who waits for the rank that keeps the store will hear of that
                now = self._moves, self._busy
                said = [self._stage, self.place, self._is_waiting, self._talks]
                self._store.set(f"watchdog/{self._rank}", json.dumps(said))
                moved, worked = now[0] != told[0], now[1] != told[1]
                self._count = self._store.add("watchdog/moves", MOVE * moved + worked)
                self._heard = self._look_at((self._rank + 1) % self._world, self._store).ticks
                told = now
                self._talks += 1
            self._done.wait(self._poll)

    def _watch(self) -> None:
        """Looks again and again whether the run is over; time in which this process was suspended does not count."""
        looked = time.monotonic()
        while not self._done.wait(self._poll):
            passed, looked = min(time.monotonic() - looked, 2 * self._poll), time.monotonic()
            over = self._look(passed)
            if over is not None:
                self._end_for(over)
                return
            if self._rank == 0 and self._idle.unmoved > self._idle.told and self._idle.quiet < self._timeout / 2:
                self._idle.told += self._timeout
                self._ask(self._say_who_works)

    def _look(self, passed: float) -> str | None:
        """Why the run is over (empty: another rank says it); None while it is not.

        Args:
            passed: seconds since the last look.
        """
        if self._count >= OVER:
            return ""
        idle, before = self._idle, self._known
        works = self._activity.seen() if self._works is None else self._works()
        self._busy += works
        self._known = now = self._moves, self._count, self._heard, self._talks
        moved = now[0] != before[0] or now[1] // MOVE != before[1] // MOVE
        idle.quiet = 0.0 if works or moved or now[1] != before[1] else idle.quiet + passed
        idle.unmoved = 0.0 if moved else idle.unmoved + passed
        idle.told = idle.told if idle.unmoved else self._timeout
        if now[3] != before[3]:  # the store has answered
            idle.silent = 0.0 if now[2] != before[2] else idle.silent + passed
        if idle.quiet > self._timeout:
            return "hung"
        return "silent" if idle.silent > self._timeout and self._ask(self._is_waited_for) else None

    def _is_waited_for(self) -> bool:
        """Whether a rank waits for the next one, which is silent."""
        silent = (self._rank + 1) % self._world
        return any(seen.is_waiting for rank, seen in enumerate(self._look_at_all()) if rank != silent)

    def _ask(self, question: Callable[[], bool]) -> bool:
        """The answer to what must be looked up in the store; False where that does not answer."""
        answers: list[bool] = []

        def look() -> None:
            with contextlib.suppress(RuntimeError):
                answers.append(question())

        asking = threading.Thread(target=look, daemon=True)
        asking.start()
        asking.join(3 * GRACE)
        return any(answers)

    def _end_for(self, why: str) -> None:
        """Ends this process; the rank that is the first to see the reason says it, and so tells the others."""
        speaker = threading.Thread(target=self._speak, args=(why,), daemon=True)
        speaker.start()
        speaker.join(3 * GRACE)
        if speaker.is_alive():
            self._say_alone()
        self._end(HUNG)

    def _speak(self, why: str) -> None:
        """Says who is missing, once for all ranks, and gives whoever does that the time to."""
        assert self._store is not None
        try:
            seen = self._look_at_all()
            first = bool(why) and self._store.add("watchdog/told", 1) == 1
            if first:
                self._store.add("watchdog/moves", OVER)
        except RuntimeError:
            self._say_alone()
            return
        late = self._late(seen)
        if self._rank in late and len(late) < self._world:
            stack = "".join(traceback.format_stack(sys._current_frames().get(self._watched)))
            self._say(f"rank {self._rank} of {self._world} has not come further than {self.place}; it is at\n{stack}")
        if first:
            self._say(self._silence(seen) if why == "silent" else self._message(seen, late))
        time.sleep(GRACE)

    def _look_at(self, rank: int, store: Store) -> Seen:
        key = f"watchdog/{rank}"
        if not store.check([key]):  # asking for a key that is not there would wait for it
            return Seen()
        return Seen(*json.loads(store.get(key)))

    def _look_at_all(self) -> list[Seen]:
        assert self._store is not None
        return [self._look_at(rank, self._store) for rank in range(self._world)]

    @staticmethod
    def _late(seen: list[Seen]) -> list[int]:
        """The ranks that have come least far."""
        least = min(found.stage for found in seen)
        return [rank for rank, found in enumerate(seen) if found.stage == least]

    def _message(self, seen: list[Seen], late: list[int]) -> str:
        waited = f"error: the run hangs: no rank has moved for {self._timeout:g} s (parallel.timeout)"
        fix = "go on from the last checkpoint with `ramify train --resume`; raise parallel.timeout if it was too short"
        if len(late) == self._world:
            return f"{waited}; all {self._world} ranks have come to {seen[0].place}\n  fix: {fix}"
        missing = self._named(seen, late, "last seen at")
        return f"{waited}; did not arrive: {missing}; {self._others(seen, late)}\n  fix: {fix}"

    def _silence(self, seen: list[Seen]) -> str:
        silent = (self._rank + 1) % self._world
        return (
            f"error: rank {silent} of {self._world}, last seen at {seen[silent].place}, has given no sign of life for "
            f"{self._timeout:g} s (parallel.timeout); {self._others(seen, [silent])}\n"
            "  fix: look whether its process was suspended or its node is gone; go on from the last checkpoint with "
            "`ramify train --resume`"
        )

    def _say_who_works(self) -> bool:
        """Nothing is wrong with a slow rank, but someone may look for the reason."""
        seen, seconds = self._look_at_all(), self._idle.unmoved
        late = self._late(seen)
        if len(late) == self._world:
            self._say(
                f"note: all ranks have been at {seen[0].place} for {seconds:.0f} s; they work, so the run goes on"
            )
        else:
            slow = self._named(seen, late, "at")
            self._say(f"note: {self._others(seen, late)} for {seconds:.0f} s; at work: {slow}, so the run goes on")
        return True

    @staticmethod
    def _named(seen: list[Seen], ranks: list[int], how: str) -> str:
        named = ", ".join(f"rank {rank} ({how} {seen[rank].place})" for rank in ranks[:NAMED])
        return named + (f" and {len(ranks) - NAMED} more" if len(ranks) > NAMED else "")

    @staticmethod
    def _others(seen: list[Seen], late: list[int]) -> str:
        places = sorted({found.place for rank, found in enumerate(seen) if rank not in late})
        return f"the others wait at {' and '.join(places)}"

    def _say_alone(self) -> None:
        self._say(
            f"error: rank {self._rank} of {self._world}, at {self.place}, cannot reach the process that keeps the "
            f"ranks together, and nothing has moved for {self._timeout:g} s (parallel.timeout)"
        )

    def _say(self, text: str) -> None:
        self._out.write(f"{text}\n")
        self._out.flush()
