"""Ends a run whose ranks are deadlocked, with a message that names the missing ranks and their last known places.

Collectives wait without a message: when one rank hangs, all others hang in their next collective. So a thread of each
rank writes into the store of the rendezvous that the rank is alive, its place in the run, and whether it is active.
A rank

- is *waiting* for the others in a collective: it is active only while its device still computes its own part;
- is *working* alone: it reads, writes, compiles or waits for a lock. It counts as active however long that takes;
- or else computes, which its processor time shows (`ramify.parallel.activity`).

When no rank has been active for `timeout` seconds, the run is hung; the others wait for the ranks that are furthest
behind. A rank whose thread has written nothing for `timeout` seconds while another waits is frozen or lost with its
node. An active rank is never ended, however slow; after `timeout` seconds rank zero prints which ranks are slow.
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
"""Exit status of a hung run: EX_SOFTWARE of BSD's sysexits.h. Unlike after `STOPPED`, a scheduler should not requeue
the run automatically: it may hang again."""
POLLS_PER_TIMEOUT = 8
"""Checks of the other ranks within one timeout: a hang is detected at most 1/8 of the timeout late."""
MAX_POLL = 5.0
"""Largest number of seconds between checks: the greatest age of the last status of a rank that stopped suddenly. The
store handles the load easily: four short messages per rank and check, 1600 per second with 2,000 ranks."""
MAX_NAMED = 8
"""Largest number of ranks that a message lists individually."""
LAST_ANSWER = 10.0
"""Maximum seconds at the end of a run to wait for calls of the store that have not returned."""
EXIT_DELAY = 2.0
"""Seconds that ranks wait before they exit, so that the rank that prints the message for all can finish it."""

PROGRESS_UNIT, RUN_OVER = 2**24, 2**62
"""Increments of the counter that all ranks share: 1 by an active rank, `PROGRESS_UNIT` by one that has reached another
place or has completed a part of its work, `RUN_OVER` by the rank that has detected the end of the run."""


@dataclass(frozen=True, slots=True)
class RankStatus:
    """The last report of a rank.

    Attributes:
        stage: number of places that it has reached; -1 where it has never reported.
        place: the last one.
        is_waiting: whether it waits for other ranks.
        ticks: number of its reports before this one.
    """

    stage: int = -1
    place: str = "nothing"
    is_waiting: bool = False
    ticks: int = -1


@dataclass
class _Idle:
    """Seconds: until the next note is due; since any rank was active; since any rank made progress; since the last
    report of the next rank."""

    next_note: float
    inactive: float = 0.0
    stalled: float = 0.0
    silent: float = 0.0


class Watchdog:
    """Watches this rank inside of a `with` block.

    Args:
        rank, world: of this process.
        store: shared by all ranks; None for a single process. It needs a connection of its own: a connection that the
            watched thread waits on would block the watchdog too.
        timeout: seconds.
        end: function that ends the process; tests replace it.
        out: stream for messages.

    Attributes:
        place: the last place that this rank has reached.
    """

    def __init__(
        self,
        rank: int = 0,
        world: int = 1,
        store: Store | None = None,
        timeout: float = math.inf,
        *,
        end: Callable[[int], None] = os._exit,  # no exception ends a thread that is blocked in a collective
        out: TextIO | None = None,
    ) -> None:
        self._rank, self._world, self._store, self._timeout = rank, world, store, timeout
        self._poll = min(timeout / POLLS_PER_TIMEOUT, MAX_POLL)
        self._end, self._out = end, out or sys.stderr
        self.place = "the start"
        self._stage, self._progress, self._active_checks = 0, 0, 0
        self._is_waiting = False
        self._is_active: Callable[[], bool] | None = None  # None: active while it uses a processor
        self._count = 0  # the shared counter
        self._neighbour_ticks, self._reports = -1, 0  # reports of the next rank, and of this one
        self._known, self._idle = (0, 0, -1, 0), _Idle(timeout)
        self._watched = 0
        self._done = threading.Event()
        self._threads = [
            threading.Thread(target=loop, name="ramify-watchdog", daemon=True)
            for loop in (self._report_loop, self._check_loop)
        ]
        self._queries: list[threading.Thread] = []

    def arrive(self, place: str) -> None:
        """Records that this rank has reached `place`, e.g. `step 12`; all ranks reach the same places in one order."""
        self._stage, self.place = self._stage + 1, place
        self.beat()

    def beat(self) -> None:
        """Records progress of this rank. Only increments a counter; the thread reports it periodically."""
        self._progress += 1

    @contextmanager
    def working(self) -> Iterator[None]:
        """Inside, this rank works alone and counts as active; it must not wait for other ranks."""
        with self._state(lambda: True, is_waiting=False):
            yield

    @contextmanager
    def waiting(self, computes: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Inside, this rank has finished its part at this place and waits for the others; all ranks reach this call.

        Args:
            computes: whether its device still computes its own part, which the host has already queued.
        """
        self.arrive(self.place)
        with self._state(computes, is_waiting=True):
            yield

    @contextmanager
    def _state(self, works: Callable[[], bool], *, is_waiting: bool) -> Iterator[None]:
        before = self._is_active, self._is_waiting
        self._is_active, self._is_waiting = works, is_waiting
        try:
            yield
        finally:
            self._is_active, self._is_waiting = before
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
            # A thread that returns from a call of the store while Python finalizes aborts the process ("terminate
            # called without an active exception"). The limit is for a store whose host is gone.
            self._threads[1].join()
            for thread in (self._threads[0], *self._queries):
                thread.join(LAST_ANSWER)

    def _report_loop(self) -> None:
        """Reports this rank's status and reads that of the next rank; the store may block this thread."""
        assert self._store is not None
        reported = -1, -1
        while not self._done.is_set():
            with contextlib.suppress(RuntimeError):  # if the host of the store is lost, collectives fail by themselves
                now = self._progress, self._active_checks
                status = [self._stage, self.place, self._is_waiting, self._reports]
                self._store.set(f"watchdog/{self._rank}", json.dumps(status))
                progressed, active = now[0] != reported[0], now[1] != reported[1]
                self._count = self._store.add("watchdog/moves", PROGRESS_UNIT * progressed + active)
                self._neighbour_ticks = self._read_status((self._rank + 1) % self._world, self._store).ticks
                reported = now
                self._reports += 1
            self._done.wait(self._poll)

    def _check_loop(self) -> None:
        """Checks periodically whether the run is over; time in which this process was suspended does not count."""
        checked = time.monotonic()
        while not self._done.wait(self._poll):
            elapsed, checked = min(time.monotonic() - checked, 2 * self._poll), time.monotonic()
            over = self._check(elapsed)
            if over is not None:
                self._end_run(over)
                return
            idle = self._idle
            if self._rank == 0 and idle.stalled > idle.next_note and idle.inactive < self._timeout / 2:
                idle.next_note += self._timeout
                self._query_store(self._print_slow_ranks)

    def _check(self, elapsed: float) -> str | None:
        """The reason why the run is over (empty: another rank prints it); None while it is not over.

        Args:
            elapsed: seconds since the last check.
        """
        if self._count >= RUN_OVER:
            return ""
        idle, before = self._idle, self._known
        active = self._activity.was_active() if self._is_active is None else self._is_active()
        self._active_checks += active
        self._known = now = self._progress, self._count, self._neighbour_ticks, self._reports
        progressed = now[0] != before[0] or now[1] // PROGRESS_UNIT != before[1] // PROGRESS_UNIT
        idle.inactive = 0.0 if active or progressed or now[1] != before[1] else idle.inactive + elapsed
        idle.stalled = 0.0 if progressed else idle.stalled + elapsed
        idle.next_note = idle.next_note if idle.stalled else self._timeout
        if now[3] != before[3]:  # the store has answered
            idle.silent = 0.0 if now[2] != before[2] else idle.silent + elapsed
        if idle.inactive > self._timeout:
            return "hung"
        return "silent" if idle.silent > self._timeout and self._query_store(self._neighbour_is_awaited) else None

    def _neighbour_is_awaited(self) -> bool:
        """Whether any rank waits while the next one is silent."""
        silent = (self._rank + 1) % self._world
        return any(status.is_waiting for rank, status in enumerate(self._read_all()) if rank != silent)

    def _query_store(self, question: Callable[[], bool]) -> bool:
        """The result of a function that reads the store; False where the store does not answer."""
        answers: list[bool] = []

        def query() -> None:
            with contextlib.suppress(RuntimeError):
                answers.append(question())

        thread = threading.Thread(target=query, name="ramify-watchdog", daemon=True)
        self._queries = [*(asked for asked in self._queries if asked.is_alive()), thread]
        thread.start()
        thread.join(3 * EXIT_DELAY)
        return any(answers)

    def _end_run(self, why: str) -> None:
        """Ends this process; the first rank that detects the reason prints it and notifies the others."""
        reporter = threading.Thread(target=self._report_end, args=(why,), daemon=True)
        reporter.start()
        reporter.join(3 * EXIT_DELAY)
        if reporter.is_alive():
            self._print_store_unreachable()
        self._end(HUNG)

    def _report_end(self, why: str) -> None:
        """Prints the missing ranks, once for all ranks, and waits until the rank that prints can finish."""
        assert self._store is not None
        try:
            statuses = self._read_all()
            first = bool(why) and self._store.add("watchdog/told", 1) == 1
            if first:
                self._store.add("watchdog/moves", RUN_OVER)
        except RuntimeError:
            self._print_store_unreachable()
            return
        late = self._furthest_behind(statuses)
        if self._rank in late and len(late) < self._world:
            stack = "".join(traceback.format_stack(sys._current_frames().get(self._watched)))
            self._print(f"rank {self._rank} of {self._world} has not got further than {self.place}; it is at\n{stack}")
        if first:
            self._print(self._silent_message(statuses) if why == "silent" else self._hang_message(statuses, late))
        time.sleep(EXIT_DELAY)

    def _read_status(self, rank: int, store: Store) -> RankStatus:
        key = f"watchdog/{rank}"
        if not store.check([key]):  # `get` would wait for a key that is not there
            return RankStatus()
        return RankStatus(*json.loads(store.get(key)))

    def _read_all(self) -> list[RankStatus]:
        assert self._store is not None
        return [self._read_status(rank, self._store) for rank in range(self._world)]

    @staticmethod
    def _furthest_behind(statuses: list[RankStatus]) -> list[int]:
        """The ranks that have reached the fewest places."""
        least = min(status.stage for status in statuses)
        return [rank for rank, status in enumerate(statuses) if status.stage == least]

    def _hang_message(self, statuses: list[RankStatus], late: list[int]) -> str:
        waited = f"error: the run hangs: no rank has made progress for {self._timeout:g} s (parallel.timeout)"
        fix = "resume from the last checkpoint with `ramify train --resume`; raise parallel.timeout if it was too short"
        if len(late) == self._world:
            return f"{waited}; all {self._world} ranks have reached {statuses[0].place}\n  fix: {fix}"
        missing = self._list_ranks(statuses, late, "last seen at")
        return f"{waited}; did not arrive: {missing}; {self._places_of_others(statuses, late)}\n  fix: {fix}"

    def _silent_message(self, statuses: list[RankStatus]) -> str:
        silent = (self._rank + 1) % self._world
        return (
            f"error: rank {silent} of {self._world}, last seen at {statuses[silent].place}, has sent no heartbeat for "
            f"{self._timeout:g} s (parallel.timeout); {self._places_of_others(statuses, [silent])}\n"
            "  fix: check whether its process was suspended or its node is down; resume from the last checkpoint with "
            "`ramify train --resume`"
        )

    def _print_slow_ranks(self) -> bool:
        """Prints the slow ranks: the run is healthy, but a user may want to know the reason of the delay."""
        statuses, seconds = self._read_all(), self._idle.stalled
        late = self._furthest_behind(statuses)
        if len(late) == self._world:
            self._print(
                f"note: all ranks have been at {statuses[0].place} for {seconds:.0f} s; they are active, so the run "
                "continues"
            )
        else:
            slow = self._list_ranks(statuses, late, "at")
            others = self._places_of_others(statuses, late)
            self._print(f"note: {others} for {seconds:.0f} s; at work: {slow}, so the run continues")
        return True

    @staticmethod
    def _list_ranks(statuses: list[RankStatus], ranks: list[int], how: str) -> str:
        listed = ", ".join(f"rank {rank} ({how} {statuses[rank].place})" for rank in ranks[:MAX_NAMED])
        return listed + (f" and {len(ranks) - MAX_NAMED} more" if len(ranks) > MAX_NAMED else "")

    @staticmethod
    def _places_of_others(statuses: list[RankStatus], late: list[int]) -> str:
        places = sorted({status.place for rank, status in enumerate(statuses) if rank not in late})
        return f"the others wait at {' and '.join(places)}"

    def _print_store_unreachable(self) -> None:
        self._print(
            f"error: rank {self._rank} of {self._world}, at {self.place}, cannot reach the process that hosts the "
            f"store of the ranks, and no rank has made progress for {self._timeout:g} s (parallel.timeout)"
        )

    def _print(self, text: str) -> None:
        self._out.write(f"{text}\n")
        self._out.flush()
