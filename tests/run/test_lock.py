"""One training at a time: a second one is refused, one whose holder is gone is taken over, and never by two at once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ramify.errors import RamifyError
from ramify.run import lock
from ramify.run.lock import GONE, NAME, RunLock

HOLD = """
import sys, time
from pathlib import Path
from ramify.run.lock import RunLock
RunLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def rewrite(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(content))


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_it_comes_and_goes(tmp_path: Path) -> None:
    held = RunLock(tmp_path).acquire()
    content = json.loads((tmp_path / NAME).read_text())
    assert content["pid"] == os.getpid()
    assert names(tmp_path) == {NAME}
    held.release()
    assert names(tmp_path) == set()
    held.release()
    RunLock(tmp_path).acquire().release()


def test_a_second_process_is_refused(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    """The error names the holder, and the lock stays."""
    for wait in (False, True):  # a holder that surely runs is not waited for
        with pytest.raises(
            RamifyError, match=rf"is being trained already: process {holder.pid} on .*\n  fix: wait for"
        ):
            RunLock(tmp_path, wait=wait).acquire()
    assert names(tmp_path) == {NAME}


@pytest.mark.parametrize("buried", [True, False])
def test_a_killed_holder_is_replaced(tmp_path: Path, holder: subprocess.Popen[str], buried: bool) -> None:
    """Also while its parent has not read its exit status."""
    os.kill(holder.pid, signal.SIGKILL)
    if buried:
        holder.wait()
    else:
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    held = RunLock(tmp_path).acquire()
    assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    held.release()
    assert names(tmp_path) == set()


def test_another_process_under_the_same_number_is_not_the_holder(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    content = json.loads((tmp_path / NAME).read_text())
    rewrite(tmp_path / NAME, started=content["started"] - 100)
    RunLock(tmp_path).acquire().release()


def test_a_holder_elsewhere_is_gone_when_it_is_silent(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    """On another host, or in another container of this one, where process numbers have another meaning."""
    for change in ({"host": "elsewhere"}, {"namespace": "pid:[1]"}):
        rewrite(tmp_path / NAME, **change)
        with pytest.raises(RamifyError, match=r"or wait until 90 s without a heartbeat"):
            RunLock(tmp_path).acquire()
    past = time.time() - GONE - 1
    os.utime(tmp_path / NAME, (past, past))
    RunLock(tmp_path).acquire().release()


def test_one_that_may_be_gone_is_waited_for(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "GONE", 1.0)
    rewrite(tmp_path / NAME, host="elsewhere")
    began = time.monotonic()
    RunLock(tmp_path, wait=True).acquire().release()
    assert time.monotonic() - began > 0.5


def test_a_job_that_slurm_has_requeued_is_over(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first execution of the job must have ended, on any node."""
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    rewrite(tmp_path / NAME, host="elsewhere", job="1234", restarts=1)
    with pytest.raises(RamifyError, match="is being trained already"):
        RunLock(tmp_path).acquire()
    rewrite(tmp_path / NAME, restarts=0)
    RunLock(tmp_path).acquire().release()


def test_the_holder_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.05)
    held = RunLock(tmp_path).acquire()
    os.utime(tmp_path / NAME, (1, 1))
    deadline = time.monotonic() + 10
    while (tmp_path / NAME).stat().st_mtime < time.time() - 60:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    held.release()


def test_this_process_does_not_shut_itself_out(tmp_path: Path) -> None:
    """A trainer that was given up without being closed; its lock does not take the new one's away."""
    first = RunLock(tmp_path).acquire()
    second = RunLock(tmp_path).acquire()
    first.release()
    assert names(tmp_path) == {NAME}
    second.release()
    assert names(tmp_path) == set()


TAKE = """
import sys, time
from pathlib import Path
from ramify.errors import RamifyError
from ramify.run.lock import RunLock
while time.time() < float(sys.argv[2]):
    pass
try:
    RunLock(Path(sys.argv[1])).acquire()
    print("mine", flush=True)
    time.sleep(2)
except RamifyError:
    print("refused", flush=True)
"""


def test_of_several_that_find_a_stale_lock_one_gets_it(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    command = [sys.executable, "-c", TAKE, str(tmp_path), str(time.time() + 1.5)]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = [other.communicate(timeout=60)[0] for other in others]
    assert sorted(said) == ["mine\n"] + ["refused\n"] * 3
