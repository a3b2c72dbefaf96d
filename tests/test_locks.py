"""Processes are told apart by their number and when they began."""

import os
import subprocess
import sys

from ramify.locks import parse_tag, process_tag, runs, started


def test_when_a_process_began() -> None:
    assert started(os.getpid()) == started(os.getpid())
    assert started(os.getpid()) is not None
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert started(child.pid) is None  # dead, not yet buried
    child.wait()
    assert started(child.pid) is None


def test_a_later_process_of_the_same_number_is_another_one() -> None:
    began = started(os.getpid())
    assert began is not None
    assert runs(os.getpid(), began)
    assert not runs(os.getpid(), began - 1)
    assert not runs(os.getpid(), None)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert not runs(gone.pid, began)
    assert not runs(gone.pid, None)


def test_tags_in_file_names() -> None:
    assert process_tag() == f"{os.getpid()}-{started(os.getpid())}"
    assert parse_tag(process_tag()) == (os.getpid(), started(os.getpid()))
    assert parse_tag(f"{os.getpid()}") == (os.getpid(), started(os.getpid()))  # of before: whoever has the number
