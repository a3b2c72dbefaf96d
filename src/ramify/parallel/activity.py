"""Whether a thread of this process is active, measured by the processor time that it uses."""

import os
import threading
import time
from pathlib import Path

ACTIVE_FRACTION = 0.01
"""Fraction of the time on a processor above which a thread counts as active. A thread that waits for a message, sleeps
or polls a lock stays far below it; a thread that computes is above it even with a hundred others on the same core."""


class ThreadActivity:
    """The activity of the thread that creates it, and of the child programs of this process (e.g. a compiler).

    Linux reports the state of each thread and program; on other systems the processor time of the whole process counts.
    """

    def __init__(self) -> None:
        self._task = Path(f"/proc/self/task/{threading.get_native_id()}")
        self._clock = time.pthread_getcpuclockid(threading.get_ident()) if hasattr(time, "pthread_getcpuclockid") else 0
        self._checked_at, self._used = time.monotonic(), self._seconds()
        self._children: dict[int, int] = {}

    def was_active(self) -> bool:
        """Whether there was any since the last call: the thread runs, is ready to run, waits for a disk or has used
        `ACTIVE_FRACTION` of a processor; or a child program has used as much."""
        now, used = time.monotonic(), self._seconds()
        elapsed, spent = now - self._checked_at, used - self._used
        self._checked_at, self._used = now, used
        return spent > ACTIVE_FRACTION * elapsed or _state(self._task) in ("R", "D") or self._children_active(elapsed)

    def _seconds(self) -> float:
        return time.clock_gettime(self._clock) if self._clock else time.process_time()

    def _children_active(self, elapsed: float) -> bool:
        before, self._children = self._children, _children_ticks(os.getpid())
        least = ACTIVE_FRACTION * elapsed * os.sysconf("SC_CLK_TCK")
        return any(ticks - before.get(pid, 0) > least for pid, ticks in self._children.items())


def _state(task: Path) -> str:
    """R: runs or waits for a processor; D: waits for a disk; S: other waits (proc(5)); empty: unknown."""
    return _fields(task)[0] if (task / "stat").exists() else ""


def _children_ticks(pid: int) -> dict[int, int]:
    """Clock ticks that each program below `pid` has used."""
    found: dict[int, int] = {}
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in listed.read_text(encoding="ascii").split()]
        except OSError:  # the thread has ended
            continue
        for child in children:
            fields = _fields(Path(f"/proc/{child}"))
            if len(fields) > 12:
                found[child] = int(fields[11]) + int(fields[12])
                found |= _children_ticks(child)
    return found


def _fields(folder: Path) -> list[str]:
    """The fields of `stat` after the program name: the first is field 3 (state); 14 and 15 are ticks (proc(5))."""
    try:
        return (folder / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split() or [""]
    except OSError:
        return [""]
