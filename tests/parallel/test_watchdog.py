"""A hung run ends with a message that names the missing ranks, the place and the time; a slow run continues."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch.distributed as dist

from ramify.parallel import watchdog
from ramify.parallel.watchdog import HUNG, RankStatus, Watchdog


class Ended:
    """Three ranks as threads of this process, with one store, and the exit statuses of their watchdogs."""

    def __init__(self, timeout: float, world: int = 3) -> None:
        self.store, self.out, self.statuses = dist.HashStore(), io.StringIO(), []
        self._ends = threading.Semaphore(0)
        self.ranks = [Watchdog(rank, world, self.store, timeout, end=self._end, out=self.out) for rank in range(world)]

    def _end(self, status: int) -> None:
        self.statuses.append(status)
        self._ends.release()

    def wait(self, seconds: float = 20, of: int | None = None) -> str:
        """The messages until all ranks, or `of` of them, have ended; without using the processor, which would count as
        work."""
        deadline = time.monotonic() + seconds
        for _ in range(of or len(self.ranks)):
            self._ends.acquire(timeout=max(0.0, deadline - time.monotonic()))
        return self.out.getvalue()


@pytest.fixture(autouse=True)
def short_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "EXIT_DELAY", 0.3)


def test_who_is_missing_is_named_once() -> None:
    ended = Ended(timeout=0.4)
    with ended.ranks[0] as a, ended.ranks[1] as b, ended.ranks[2] as c:
        for rank in (a, b, c):
            rank.arrive("step 12: batch")
        for rank in (a, c):
            rank.arrive("step 12: gradients")
        text = ended.wait()
    assert ended.statuses == [HUNG] * 3
    assert text.count("error: ") == 1
    assert (
        "error: the run hangs: no rank has made progress for 0.4 s (parallel.timeout); did not arrive: rank 1 (last "
        "seen at step 12: batch); the others wait at step 12: gradients\n  fix: resume from the last checkpoint"
    ) in text
    assert "rank 1 of 3 has not got further than step 12: batch; it is at\n" in text
    assert re.search(r"rank 1 of 3 .*it is at\n(.*\n)*.*test_watchdog\.py.*test_who_is_missing_is_named_once", text)


def test_a_rank_that_never_came_is_named() -> None:
    ended = Ended(timeout=0.3)
    with ended.ranks[0] as a, ended.ranks[2] as c:
        for rank in (a, c):
            rank.arrive("step 1: gradients")
        ended.wait(of=2)
    assert "did not arrive: rank 1 (last seen at nothing); the others wait at step 1: gradients" in ended.out.getvalue()


def test_when_all_came_that_is_said() -> None:
    ended = Ended(timeout=0.3)
    with ended.ranks[0] as a, ended.ranks[1] as b, ended.ranks[2] as c:
        for rank in (a, b, c):
            rank.arrive("step 3: gradients")
        assert "(parallel.timeout); all 3 ranks have reached step 3: gradients\n" in ended.wait()


def test_who_does_not_get_done_is_named() -> None:
    """All ranks have reached the checkpoint; one does not finish it."""
    ended = Ended(timeout=0.3)
    with ended.ranks[0] as a, ended.ranks[1] as b, ended.ranks[2] as c:
        for rank in (a, b, c):
            rank.arrive("the checkpoint of step 5")
        with a.waiting(), b.waiting():
            text = ended.wait()
    assert "did not arrive: rank 2 (last seen at the checkpoint of step 5); the others wait at the checkpoint" in text


def test_as_long_as_one_moves_nobody_is_ended() -> None:
    """One rank evaluates for four timeouts while the others wait for it."""
    ended = Ended(timeout=0.5)
    with ended.ranks[0] as a, ended.ranks[1] as b, ended.ranks[2] as busy, a.waiting(), b.waiting():
        for _ in range(40):
            time.sleep(0.05)
            busy.beat()
    assert ended.statuses == []
    assert ended.out.getvalue() == ""


def test_a_rank_that_reads_or_writes_is_not_hung_however_slow() -> None:
    """It sleeps for three timeouts, as while it waits for a file system; messages name its place."""
    ended = Ended(timeout=0.4)
    with ended.ranks[0] as a, ended.ranks[1] as b, ended.ranks[2] as busy:
        for rank in (a, b, busy):
            rank.arrive("the checkpoint of step 5")
        note, deadline = "at work: rank 2 (at the checkpoint of step 5), so the run continues\n", time.monotonic() + 20
        with a.waiting(), b.waiting(), busy.working():
            while ended.out.getvalue().count(note) < 3 and time.monotonic() < deadline:
                time.sleep(0.02)
        assert ended.statuses == []
        text = ended.out.getvalue()
        assert "error" not in text
        assert text.count(note) == 3
        with a.waiting(), b.waiting():  # and when it has done and then does nothing more, that is a hang
            assert "did not arrive: rank 2" in ended.wait()


def test_a_device_that_computes_is_not_hung() -> None:
    """The host waits for its own device: while the device computes the part of its rank, no rank is ended."""
    ended, computes = Ended(timeout=0.4), threading.Event()
    computes.set()
    a, b, c = ended.ranks
    with a, b, c, a.waiting(), b.waiting(), c.waiting(computes.is_set):
        time.sleep(1.5)
        assert ended.statuses == []
        computes.clear()
        ended.wait()
    assert ended.statuses == [HUNG] * 3


def test_a_silent_rank_ends_the_run_although_another_works() -> None:
    """Rank 1 is gone with its node, or frozen; rank 0 waits for it, rank 2 would work for hours."""
    ended = Ended(timeout=0.4)
    with ended.ranks[0] as a, ended.ranks[2] as busy:
        a.arrive("step 7: gradients")
        with busy.working():
            time.sleep(1.2)
            assert ended.statuses == []  # nobody waits yet
            with a.waiting():
                text = ended.wait(of=2)
    assert ended.statuses == [HUNG] * 2
    assert "error: rank 1 of 3, last seen at nothing, has sent no heartbeat for 0.4 s (parallel.timeout)" in text
    assert text.count("error: ") == 1


def test_a_store_that_does_not_answer_ends_the_run_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the machine that hosts it is lost."""

    over = threading.Event()
    monkeypatch.setattr(watchdog, "LAST_ANSWER", 0.1)

    class Silent:
        def set(self, *_: object) -> None:
            over.wait(30)

        check = add = set

    out, statuses, ended = io.StringIO(), [], threading.Event()

    def end(status: int) -> None:
        statuses.append(status)
        ended.set()

    with Watchdog(1, 2, Silent(), 0.3, end=end, out=out) as lonely:  # type: ignore[arg-type]
        lonely.arrive("step 7: gradients")
        ended.wait(20)
    over.set()
    assert statuses == [HUNG]
    assert (
        "rank 1 of 2, at step 7: gradients, cannot reach the process that hosts the store of the ranks"
        in out.getvalue()
    )


def test_alone_there_is_nobody_to_wait_for() -> None:
    before = threading.active_count()
    with Watchdog(0, 1, None, 0.1) as alone:
        alone.arrive("step 1")
        alone.beat()
        assert threading.active_count() == before


def test_no_thread_outlives_the_run() -> None:
    """A thread that returns from a call of the store while Python finalizes would abort the process."""

    class SlowStore(dist.HashStore):
        def set(self, key: str, value: str) -> None:
            time.sleep(0.2)
            super().set(key, value)

    before = threading.enumerate()
    with Watchdog(0, 2, SlowStore(), 1.0) as rank:
        rank.arrive("step 1")
        time.sleep(0.05)
    assert set(threading.enumerate()) <= set(before)


def test_no_question_to_the_store_outlives_the_run() -> None:
    """Also one that the watchdog has stopped waiting for, because the store took too long to answer."""
    asked, answer = threading.Event(), threading.Event()
    loops: list[threading.Thread] = []

    class SlowStore(dist.HashStore):
        def check(self, keys: list[str]) -> bool:
            if loops and threading.current_thread() not in loops:
                asked.set()
                answer.wait(30)
            return bool(super().check(keys))

    statuses: list[int] = []
    before = threading.enumerate()
    with Watchdog(0, 2, SlowStore(), 0.2, end=statuses.append, out=io.StringIO()) as rank:
        loops += [thread for thread in threading.enumerate() if thread not in before]
        with rank.working():  # no other rank comes: the slow ones are listed after a timeout
            assert asked.wait(20)
        timer = threading.Timer(0.5, answer.set)
        timer.start()
    timer.join()
    assert set(threading.enumerate()) <= set(before)
    assert statuses == []


def test_many_missing_ranks_are_counted() -> None:
    ended = Ended(timeout=1, world=20)
    text = ended.ranks[0]._hang_message([RankStatus(2, "step 2")] + [RankStatus(1, "step 1")] * 19, list(range(1, 20)))
    assert "rank 8 (last seen at step 1) and 11 more; the others wait at step 2" in text


TWO = """
import datetime, os, subprocess, sys, time
import torch, torch.distributed as dist
from ramify.parallel.watchdog import Watchdog
rank, path, how = int(sys.argv[1]), sys.argv[2], sys.argv[3]
store = dist.FileStore(path, 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=datetime.timedelta(days=1))
burn = "import time; end = time.monotonic() + 4\\nwhile time.monotonic() < end: pass"
with Watchdog(rank, 2, dist.PrefixStore("watchdog", dist.FileStore(path + "w", 2)), 1.0) as watchdog:
    for step in range(5):
        watchdog.arrive(f"step {step}: batch")
        if rank == 1 and step == 3:
            if how == "stop":
                time.sleep(0.6)  # until its thread has spoken
                os.kill(os.getpid(), 19)
            if how == "compute":
                exec(burn)
            elif how == "compile":
                subprocess.run([sys.executable, "-c", burn], check=True)
            else:
                time.sleep(1000)
        watchdog.arrive(f"step {step}: gradients")
        dist.all_reduce(torch.ones(3))
dist.destroy_process_group()  # its threads release tensors: at exit they would abort the process
print("finished")
"""


@contextmanager
def two(folder: Path, how: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes over Gloo."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(rank), str(folder / "store"), how],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            text=True,
        )
        for rank in range(2)
    ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["sleep", "stop"])
def test_processes_that_wait_in_a_sum_end(tmp_path: Path, how: str) -> None:
    """One sleeps, or the whole process is stopped (SIGSTOP), so that it cannot report its place."""
    with two(tmp_path, how) as ranks:
        out, waiting = ranks[0].communicate(timeout=60)
        assert (ranks[0].returncode, out) == (HUNG, "")
        if how == "stop":
            ranks[1].send_signal(signal.SIGCONT)
        out, late = ranks[1].communicate(timeout=60)
        assert (ranks[1].returncode, out) == (HUNG, "")
    message = (
        "did not arrive: rank 1 (last seen at step 3: batch); the others wait at step 3: gradients\n  fix: resume from"
    )
    assert message in waiting + late
    if how == "sleep":
        assert "rank 1 of 2 has not got further than step 3: batch; it is at\n" in late
        assert "time.sleep(1000)" in late or 'File "<string>"' in late


@pytest.mark.slow
@pytest.mark.parametrize("how", ["compute", "compile"])
def test_a_process_that_computes_is_waited_for(tmp_path: Path, how: str) -> None:
    """For four timeouts without a report: it computes itself, or waits for a compiler that it has started."""
    with two(tmp_path, how) as ranks:
        for rank in ranks:
            out, said = rank.communicate(timeout=60)
            assert (rank.returncode, out) == (0, "finished\n"), said


@pytest.mark.slow
def test_suspended_together_they_go_on_together(tmp_path: Path) -> None:
    """As by Ctrl-Z and fg: the time in between counts for no rank."""
    with two(tmp_path, "compute") as ranks:
        time.sleep(4)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for rank in ranks:
                rank.send_signal(number)
            time.sleep(3)
        for rank in ranks:
            out, said = rank.communicate(timeout=60)
            assert (rank.returncode, out) == (0, "finished\n"), said
