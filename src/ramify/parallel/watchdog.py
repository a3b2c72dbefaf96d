"""Ends a run whose ranks wait for one another in vain, with a message that names who did not come, and where.

Collectives wait in silence: when one rank hangs, all others hang in their next sum. So every rank says where it is
(`arrive`, at places that all ranks come by, one after the other) and that it lives (`beat`, as often as it likes), and
a thread beside it passes that on through the store that the processes met at. When no rank anywhere has moved for
`timeout` seconds, those that have come least far are those that the others wait for. A slow rank is no hung one: as
long as anybody moves, nobody is ended.
"""

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Self, TextIO

from torch.distributed.distributed_c10d import Store

HUNG = 70
"""Exit status of a hung run: EX_SOFTWARE of BSD's sysexits.h. Unlike `STOPPED` nothing a scheduler should requeue on
without a thought: what hung once may hang again."""
POLLS = 8
"""How often a rank looks at the others within one timeout: hung ranks are found at most 1 / 8 late."""
POLL = 5.0
"""Seconds between looks, at most: how old what is known of a rank may be that has stopped without a word. Two short
messages a rank each time are little for the store, 800 a second with 2,000 ranks."""
NAMED = 8
"""The most ranks that are named one by one."""
GRACE = 2.0
"""Seconds that ranks wait before they go, so that the one that speaks for all has finished its message."""


class Watchdog:
    """Watches this rank from `with` to its end.

    Args:
        rank, world: of this process.
        store: that all ranks know; None for a process by itself, which waits for nobody. A connection of its own:
            one that the watched thread is waiting at would keep the watchdog waiting too.
        timeout: seconds without a beat anywhere after which the run is hung.
        end: what ends the process; tests put something else here.
        out: where the message goes.

    Attributes:
        place: where this rank is, as it was last told.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        store: Store | None,
        timeout: float,
        *,
        end: Callable[[int], None] = os._exit,  # a thread that is stuck in a collective heeds no exception
        out: TextIO | None = None,
    ) -> None:
        self._rank, self._world, self._store, self._timeout = rank, world, store, timeout
        self._poll = min(timeout / POLLS, POLL)
        self._end, self._out = end, out or sys.stderr
        self.place = "the start"
        self._beats, self._stage = 0, 0
        self._told, self._moves, self._moved = -1, -1, 0.0  # what the store knows of this rank; of all; since when
        self._watched = 0
        self._done = threading.Event()
        self._threads = [
            threading.Thread(target=work, name="ramify-watchdog", daemon=True) for work in (self._talk, self._watch)
        ]

    def arrive(self, place: str) -> None:
        """This rank has come to `place`, e.g. `step 12`; all ranks come by the same places in the same order."""
        self._stage, self.place = self._stage + 1, place
        self._beats += 1

    def wait(self) -> None:
        """This rank has done its part where it is and waits for the others to do theirs."""
        self.arrive(self.place)

    def beat(self) -> None:
        """This rank lives. Costs nothing: the thread tells the others now and then."""
        self._beats += 1

    def __enter__(self) -> Self:
        if self._store is not None:
            self._watched, self._moved = threading.get_ident(), time.monotonic()
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._store is not None:
            self._threads[1].join()  # not the one that talks: it may wait for a store that is gone

    def _talk(self) -> None:
        """Tells the others that this rank has moved, and notes when any of them has."""
        assert self._store is not None
        while not self._done.wait(self._poll):
            with contextlib.suppress(RuntimeError):  # who waits for the rank that keeps the store will hear of that
                beats = self._beats
                if beats != self._told:
                    self._store.set(f"watchdog/{self._rank}", json.dumps([self._stage, self.place]))
                moves = self._store.add("watchdog/moves", int(beats != self._told))
                self._told = beats
                if moves != self._moves:
                    self._moves, self._moved = moves, time.monotonic()

    def _watch(self) -> None:
        assert self._store is not None
        beats = -1
        while not self._done.wait(self._poll):
            if self._beats != beats:
                beats, self._moved = self._beats, time.monotonic()
            if time.monotonic() - self._moved > self._timeout:
                speaker = threading.Thread(target=self._speak, args=(self._store,), daemon=True)
                speaker.start()
                speaker.join(3 * GRACE)
                if speaker.is_alive():
                    self._say_alone()
                self._end(HUNG)
                return

    def _speak(self, store: Store) -> None:
        """Says who is missing, once for all ranks, and gives whoever does that the time to."""
        try:
            places = [self._place_of(rank, store) for rank in range(self._world)]
            first = store.add("watchdog/told", 1) == 1
        except RuntimeError:
            self._say_alone()
            return
        least = min(stage for stage, _ in places)
        late = [rank for rank, (stage, _) in enumerate(places) if stage == least]
        if self._rank in late and len(late) < self._world:
            stack = "".join(traceback.format_stack(sys._current_frames().get(self._watched)))
            self._say(f"rank {self._rank} of {self._world} has not come further than {self.place}; it is at\n{stack}")
        if first:
            self._say(self._message(places, late))
        time.sleep(GRACE)

    @staticmethod
    def _place_of(rank: int, store: Store) -> tuple[int, str]:
        key = f"watchdog/{rank}"
        if not store.check([key]):  # asking for a key that is not there would wait for it
            return -1, "nothing"
        stage, place = json.loads(store.get(key))
        return stage, place

    def _message(self, places: list[tuple[int, str]], late: list[int]) -> str:
        waited = f"error: the run hangs: no rank has moved for {self._timeout:g} s (parallel.timeout)"
        fix = "go on from the last checkpoint with `ramify train --resume`; raise parallel.timeout if it was too short"
        if len(late) == self._world:
            return f"{waited}; all {self._world} ranks have come to {places[0][1]}\n  fix: {fix}"
        missing = ", ".join(f"rank {rank} (last seen at {places[rank][1]})" for rank in late[:NAMED])
        missing += f" and {len(late) - NAMED} more" if len(late) > NAMED else ""
        others = " and ".join(sorted({place for rank, (_, place) in enumerate(places) if rank not in late}))
        return f"{waited}; did not arrive: {missing}; the others wait at {others}\n  fix: {fix}"

    def _say_alone(self) -> None:
        self._say(
            f"error: rank {self._rank} of {self._world}, at {self.place}, cannot reach the process that keeps the "
            f"ranks together, and nothing has moved for {self._timeout:g} s (parallel.timeout)"
        )

    def _say(self, text: str) -> None:
        self._out.write(f"{text}\n")
        self._out.flush()
