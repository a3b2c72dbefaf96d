"""A run that hangs ends, and says who did not come, where, and since when; one that is only slow goes on."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from ramify.parallel import watchdog
from ramify.parallel.watchdog import HUNG, Watchdog


class Ended:
    """Three ranks as threads of this process, with one store; what their watchdogs did."""

    def __init__(self, timeout: float, world: int = 3) -> None:
        self.store, self.out, self.statuses = dist.HashStore(), io.StringIO(), []
        self.ranks = [
            Watchdog(rank, world, self.store, timeout, end=self.statuses.append, out=self.out) for rank in range(world)
        ]

    def wait(self, seconds: float = 20) -> str:
        """What was said until all ranks had ended."""
        deadline = time.monotonic() + seconds
        while len(self.statuses) < len(self.ranks) and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.out.getvalue()


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "GRACE", 0.3)


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
        "error: the run hangs: no rank has moved for 0.4 s (parallel.timeout); did not arrive: rank 1 (last seen at "
        "step 12: batch); the others wait at step 12: gradients\n  fix: go on from the last checkpoint"
    ) in text
    assert "rank 1 of 3 has not come further than step 12: batch; it is at\n" in text
    assert re.search(r"rank 1 of 3 .*it is at\n(.*\n)*.*test_watchdog\.py.*test_who_is_missing_is_named_once", text)


def test_a_rank_that_never_came_is_named() -> None:
    ended = Ended(timeout=0.3)
    with ended.ranks[0] as a, ended.ranks[2] as c:
        for rank in (a, c):
            rank.arrive("step 1: gradients")
        deadline = time.monotonic() + 20
        while len(ended.statuses) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
    assert "did not arrive: rank 1 (last seen at nothing); the others wait at step 1: gradients" in ended.out.getvalue()


def test_when_all_came_that_is_said() -> None:
    ended = Ended(timeout=0.3)
    with ended.ranks[0] as a, ended.ranks[1] as b, ended.ranks[2] as c:
        for rank in (a, b, c):
            rank.arrive("step 3: gradients")
        assert "(parallel.timeout); all 3 ranks have come to step 3: gradients\n" in ended.wait()


def test_who_does_not_get_done_is_named() -> None:
    """All have come to the checkpoint; one does not get it written."""
    ended = Ended(timeout=0.3)
    with ended.ranks[0] as a, ended.ranks[1] as b, ended.ranks[2] as c:
        for rank in (a, b, c):
            rank.arrive("the checkpoint of step 5")
        a.wait()
        b.wait()
        text = ended.wait()
    assert "did not arrive: rank 2 (last seen at the checkpoint of step 5); the others wait at the checkpoint" in text


def test_as_long_as_one_moves_nobody_is_ended() -> None:
    """One rank evaluates for four timeouts while the others wait for it."""
    ended = Ended(timeout=0.5)
    with ended.ranks[0], ended.ranks[1], ended.ranks[2] as busy:
        for _ in range(40):
            time.sleep(0.05)
            busy.beat()
    assert ended.statuses == []
    assert ended.out.getvalue() == ""


def test_a_store_that_does_not_answer_ends_the_run_too() -> None:
    """As when the machine that keeps it is gone without a word."""

    class Silent:
        def set(self, *_: object) -> None:
            threading.Event().wait(30)

        check = add = set

    out, statuses = io.StringIO(), []
    with Watchdog(1, 2, Silent(), 0.3, end=statuses.append, out=out) as lonely:  # type: ignore[arg-type]
        lonely.arrive("step 7: gradients")
        deadline = time.monotonic() + 20
        while not statuses and time.monotonic() < deadline:
            time.sleep(0.02)
    assert statuses == [HUNG]
    assert "rank 1 of 2, at step 7: gradients, cannot reach the process that keeps the ranks together" in out.getvalue()


def test_alone_there_is_nobody_to_wait_for() -> None:
    before = threading.active_count()
    with Watchdog(0, 1, None, 0.1) as alone:
        alone.arrive("step 1")
        alone.beat()
        assert threading.active_count() == before


def test_many_missing_ranks_are_counted() -> None:
    ended = Ended(timeout=1, world=20)
    text = ended.ranks[0]._message([(2, "step 2")] + [(1, "step 1")] * 19, list(range(1, 20)))
    assert "rank 8 (last seen at step 1) and 11 more; the others wait at step 2" in text


HANG = """
import datetime, os, sys, time
import torch, torch.distributed as dist
from ramify.parallel.watchdog import Watchdog
rank, path, how = int(sys.argv[1]), sys.argv[2], sys.argv[3]
store = dist.FileStore(path, 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=datetime.timedelta(days=1))
with Watchdog(rank, 2, dist.PrefixStore("watchdog", dist.FileStore(path + "w", 2)), 1.0) as watchdog:
    for step in range(5):
        watchdog.arrive(f"step {step}: batch")
        if rank == 1 and step == 3:
            if how == "stop":
                time.sleep(0.6)  # until its thread has spoken
                os.kill(os.getpid(), 19)
            time.sleep(1000)
        watchdog.arrive(f"step {step}: gradients")
        dist.all_reduce(torch.ones(3))
print("finished")
"""


@pytest.mark.parametrize("how", ["sleep", "stop"])
def test_processes_that_wait_in_a_sum_end(tmp_path: Path, how: str) -> None:
    """Two processes over Gloo; one sleeps, or is stopped whole (SIGSTOP), so that it cannot even say where it is."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", HANG, str(rank), str(tmp_path / "store"), how],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            text=True,
        )
        for rank in range(2)
    ]
    try:
        out, waiting = ranks[0].communicate(timeout=60)
        assert (ranks[0].returncode, out) == (HUNG, "")
        if how == "stop":
            ranks[1].send_signal(signal.SIGCONT)
        out, late = ranks[1].communicate(timeout=60)
        assert (ranks[1].returncode, out) == (HUNG, "")
    finally:
        for rank in ranks:
            rank.kill()
    message = (
        "did not arrive: rank 1 (last seen at step 3: batch); the others wait at step 3: gradients\n  fix: go on from"
    )
    assert message in waiting + late
    if how == "sleep":
        assert "rank 1 of 2 has not come further than step 3: batch; it is at\n" in late
        assert "time.sleep(1000)" in late or 'File "<string>"' in late
